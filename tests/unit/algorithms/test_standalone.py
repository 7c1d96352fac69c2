from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlecs_lightning import MLECS
from mlecs_lightning.algorithms import (
    Centralized,
    FedAvg,
    Standalone,
    StandalonePublic,
    Steps,
    standalone,
)
from mlecs_lightning.algorithms.answers import Labels, answer_all
from mlecs_lightning.data import SampleTable
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


@pytest.mark.parametrize("algorithm", [StandalonePublic, Centralized])
def test_self_training_uses_the_model_s_own_answers_and_sends_nothing(
    algorithm: type[StandalonePublic],
    tiny: SimpleNamespace,
    tapped: Tap,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    given: list[tuple[str, dict[str, str]]] = []

    def answer(learner: Any, table: SampleTable) -> Labels:  # noqa: ANN401
        labels = answer_all(learner, table)
        given.append((learner.name, labels.by_id(table.ids)))
        return labels

    monkeypatch.setattr(standalone, "answer_all", answer)
    digits = tiny.data(public_labelled=0.1)
    with tapped() as log:
        taught = algorithm(steps=Steps(1, 1, 1, 1), self_training=0.0)
        tiny.fit(taught, tmp_path, None, digits, max_rounds=2)
    assert log.messages == []
    assert Counter(name for name, _ in given) == {"server": 2, **dict.fromkeys(tiny.clients, 1)}
    table = digits.public("train")
    known = {i: t for i, t in zip(table.ids, table.targets, strict=True) if t}
    rounds = {name: [said for who, said in given if who == name] for name, _ in given}
    for client in tiny.clients:
        rounds[client].insert(0, {})  # in the first round a client trains on known targets alone
    for name, stage, batches in log.passes:
        if stage == "public":
            said, (batch,) = rounds[name].pop(0), batches
            assert batch.targets == tuple(known.get(i) or said.get(i, "") for i in batch.ids)


def test_no_self_training_where_no_answer_is_sure_enough(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    """No model of the tests is certain, so the run is the one without self-training."""
    digits = tiny.data(public_labelled=0.1)
    scores = [
        tiny.fit(
            StandalonePublic(steps=Steps(1, 1, 1, 1), self_training=threshold),
            tmp_path / str(threshold),
            None,
            digits,
            max_rounds=2,
        )["mean"]
        for threshold in (None, 1.0)
    ]
    assert scores[0] == scores[1]


def test_self_training_has_a_range() -> None:
    with pytest.raises(ValueError, match=r"self_training must lie in \[0, 1\], got 2"):
        StandalonePublic(self_training=2)
