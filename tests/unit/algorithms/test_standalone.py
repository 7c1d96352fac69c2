from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlecs_lightning import MLECS
from mlecs_lightning.algorithms import Centralized, FedAvg, Standalone, StandalonePublic, Steps
from mlecs_lightning.rounds import Algorithm

Tap = Callable[[], AbstractContextManager[SimpleNamespace]]
STEPS = Steps(1, 2, 3, 1)


@pytest.mark.parametrize("algorithm", [Standalone, StandalonePublic, Centralized])
def test_nothing_crosses_the_border(
    tiny: SimpleNamespace, tapped: Tap, algorithm: Callable[..., Algorithm], tmp_path: Path
) -> None:
    with tapped() as log:
        summary = tiny.fit(algorithm(steps=STEPS), tmp_path)
    assert log.messages == []
    wire = summary["communication"]
    assert (wire["uplink_bytes"], wire["downlink_bytes"]) == (0, 0)
    assert wire["by_component"] == {"uplink": {}, "downlink": {}}
    assert wire["ratio_of_edge_parameters"] == {"uplink": 0.0, "downlink": 0.0}
    assert summary["aggregation_error"] == []


def test_standalone_takes_the_steps_of_both_passes_on_its_own_samples(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    data = tiny.data()
    with tapped() as log:
        tiny.fit(Standalone(steps=STEPS), tmp_path, None, data)
    taken = {(party, stage): batches for party, stage, batches in log.passes}
    assert {k: len(v) for k, v in taken.items()} == {
        ("server", "warmup"): 1,
        ("kitchen", "private"): 5,
        ("hall", "private"): 5,
        ("study", "private"): 5,
        ("server", "public"): 1,
    }
    for party in tiny.clients:
        ids = {i for batch in taken[party, "private"] for i in batch.ids}
        assert ids <= set(data.private(party).ids)


def test_centralized_reads_the_samples_of_all_clients(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    data = tiny.data(batch_size=64, public_fraction=0.6, test_fraction=0.3)
    with tapped() as log:
        tiny.fit(Centralized(steps=Steps(0, 1, 3, 3)), tmp_path, None, data)
    held = {party: set(data.private(party).ids) for party in tiny.clients}
    read = {
        party: {i for batch in batches for i in batch.ids}
        for party, stage, batches in log.passes
        if stage == "private"
    }
    everything = set().union(*held.values())
    assert len(everything) < 3 * 64  # three batches are more than one pass over the pool
    assert read["server"] == everything
    # A client's model reads what its own sensors would have seen of the others' samples.
    assert read["kitchen"] == read["study"] == held["kitchen"] | held["study"]
    assert read["hall"] == held["hall"]
    for party, _, batches in log.passes:
        for batch in batches:
            has = tiny.clients[party].modalities if party != "server" else list(data.modalities)
            assert list(batch.modalities) == has


@pytest.mark.parametrize("algorithm", [MLECS, FedAvg, Standalone, StandalonePublic])
def test_nobody_else_reads_a_sample_that_is_not_its_own(
    tiny: SimpleNamespace, tapped: Tap, algorithm: Callable[..., Algorithm], tmp_path: Path
) -> None:
    data = tiny.data(batch_size=16)
    with tapped() as log:
        tiny.fit(algorithm(steps=Steps(1, 2, 2, 2)), tmp_path, None, data)
    public = set(data.public("train").ids)
    for party, _, batches in log.passes:
        own = set() if party == "server" else set(data.private(party).ids)
        assert {i for batch in batches for i in batch.ids} <= public | own
