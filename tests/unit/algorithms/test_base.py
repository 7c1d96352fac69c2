from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mlecs_lightning.algorithms import FedAvg, LocalTraining, StandalonePublic, Steps
from mlecs_lightning.algorithms.base import PassOrder
from mlecs_lightning.rounds import RoundContext

Tap = Callable[[], AbstractContextManager[SimpleNamespace]]


@pytest.mark.parametrize("name", ["warmup", "public", "private", "server"])
def test_steps_are_not_negative(name: str) -> None:
    with pytest.raises(ValueError, match=f"steps must not be negative, .*{name}=-1"):
        Steps(**{name: -1})
    assert getattr(Steps(**{name: 0}), name) == 0


@pytest.mark.parametrize(
    ("order", "stages"),
    [("public_first", ["public", "private"]), ("private_first", ["private", "public"])],
)
def test_every_party_takes_its_steps_in_the_order_asked_for(
    tiny: SimpleNamespace, tapped: Tap, order: PassOrder, stages: list[str], tmp_path: Path
) -> None:
    algorithm = StandalonePublic(steps=Steps(3, 1, 2, 4), order=order)
    with tapped() as log:
        tiny.fit(algorithm, tmp_path)
    taken = [(party, stage, len(batches)) for party, stage, batches in log.passes]
    steps = {"public": 1, "private": 2}
    assert taken == [
        ("server", "warmup", 3),
        *((name, s, steps[s]) for name in ("kitchen", "hall", "study") for s in stages),
        ("server", "public", 4),
    ]


def test_a_pass_is_a_function_of_round_party_and_stage(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    with tapped() as log:
        tiny.fit(FedAvg(steps=tiny.steps(warmup=1)), tmp_path / "a", max_rounds=2)
    with tapped() as again:
        tiny.fit(FedAvg(steps=tiny.steps(warmup=1)), tmp_path / "b", max_rounds=2)
    read = [[b.ids for b in batches] for _, _, batches in log.passes]
    assert read == [[b.ids for b in batches] for _, _, batches in again.passes]
    public = [ids[0] for (_, s, _), ids in zip(log.passes, read, strict=True) if s != "private"]
    assert len({tuple(sorted(ids)) for ids in public}) == len(public) == 9


def test_clients_see_public_samples_through_their_own_modalities(
    tiny: SimpleNamespace, tapped: Tap, tmp_path: Path
) -> None:
    data = tiny.data()
    with tapped() as log:
        tiny.fit(FedAvg(steps=tiny.steps()), tmp_path, None, data)
    for party, stage, batches in log.passes:
        has = tiny.clients[party].modalities if party != "server" else list(data.modalities)
        pool = data.private(party) if stage == "private" else data.public()
        for batch in batches:
            assert list(batch.inputs) == has
            assert set(batch.ids) <= set(pool.ids)


def test_the_frame_alone_is_a_method(tiny: SimpleNamespace, tapped: Tap, tmp_path: Path) -> None:
    class Silent(LocalTraining):
        communicates = False

    with tapped() as log:
        summary = tiny.fit(Silent(steps=tiny.steps(warmup=1)), tmp_path)
    assert log.messages == []
    assert len(log.passes) == 1 + 3 * 2 + 1
    assert summary["rounds"] == 1


def test_interleaved_takes_a_step_of_each_pass_in_turn(tiny: SimpleNamespace) -> None:
    algorithm = StandalonePublic(steps=Steps(0, 3, 2, 0), order="interleaved")
    data = tiny.data()
    edge = tiny.build(algorithm, None, data).edge("hall")
    stages = []
    edge.before_step = lambda: stages.append(edge.stage)
    losses = algorithm.local_passes(edge, tiny.loaders(data, "hall"), RoundContext(0, 0, ("hall",)))
    assert stages == ["private", "public", "private", "public", "public"]
    assert {"public/loss", "private/loss"} == losses.keys()


def test_a_short_private_pass_in_turns_is_that_pass_alone(tiny: SimpleNamespace) -> None:
    """Taking turns with nobody changes no bit."""
    data = tiny.data()
    states = []
    for order in ("interleaved", "private_first"):
        algorithm = StandalonePublic(steps=Steps(0, 0, 2, 0), order=order)
        edge = tiny.build(algorithm, None, data).edge("hall")
        algorithm.local_passes(edge, tiny.loaders(data, "hall"), RoundContext(0, 0, ("hall",)))
        states.append(edge.module.trainable_state())
    assert all(torch.equal(t, states[1][k]) for k, t in states[0].items())
