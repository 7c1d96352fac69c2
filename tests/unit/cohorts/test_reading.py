"""Clients that are scored together have the scores, and say the words, that they have alone."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from safetensors.torch import load

from mlecs_lightning import CDCCA, Digits
from mlecs_lightning.algorithms import FedAvg, Standalone
from mlecs_lightning.algorithms.answers import Labels, answer_all
from mlecs_lightning.algorithms.cdcca.sampling import UTS
from mlecs_lightning.clients import FederationModels
from mlecs_lightning.cohorts.cohort import Cohort
from mlecs_lightning.cohorts.registry import Cohorts
from mlecs_lightning.data.base import FederatedDataModule
from mlecs_lightning.evaluation.parties import Evaluator
from mlecs_lightning.rounds.learner import EdgeLearner
from mlecs_lightning.types import Batch
from tests.unit.cohorts.conftest import NAMES, Shop, off

SENSORS = {"c1": ["fourier"], "c3": ["fourier"], "c4": ["pixels"], "c6": ["fourier"]}
MODEL = {
    "optimizer": {"class_path": "AdamW", "init_args": {"lr": 5e-2}},
    "lora": {"dropout": 0.3, "private_r": 2},
    "connector": {"dropout": 0.3},
    "max_new_tokens": 6,
}


def trained(shop: Shop, tiny: SimpleNamespace) -> tuple[FederationModels, Digits]:
    """Return clients that have become different from one another."""
    algorithm = Standalone(steps=tiny.steps(private=2))
    shop.run(algorithm, NAMES, size=8, rounds=2, sensors=SENSORS, **MODEL)
    federation, data = shop._federation(algorithm, Digits, SENSORS, dict(MODEL))
    return federation, data


def judge(data: FederatedDataModule, federation: FederationModels, size: int) -> Evaluator:
    fabric = Fabric(accelerator="cpu", devices=1)
    evaluator = Evaluator(data, fabric=fabric, bertscore=False, limit=2)
    evaluator.cohorts = Cohorts(federation, data, size) if size > 1 else None
    return evaluator


def test_scores_and_words_are_those_of_each_client_alone(
    shop: Shop,
    tiny: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    federation, data = trained(shop, tiny)
    sizes: list[int] = []
    run = Cohort.run
    monkeypatch.setattr(
        Cohort, "run", lambda self, jobs: sizes.append(len(jobs)) or run(self, jobs)
    )
    one, other = judge(data, federation, 1), judge(data, federation, 3)
    alone, together = one.validate(federation), other.validate(federation)
    assert alone.keys() == together.keys()
    assert off(alone, together) < 1e-5
    assert len({alone[f"clients/{name}/val/loss"] for name in NAMES}) == len(NAMES)
    assert sizes == [2, 2, 3]  # c0 and c2, c5 and c7, c1 and c3 and c6; c4 comes alone
    assert "after another" not in caplog.text

    def words(evaluator: Evaluator) -> dict[str, tuple[Any, Labels]]:
        def speak(edge: EdgeLearner) -> tuple[Any, Labels]:
            table = data.private(edge.name, "test")
            return evaluator.predictions(edge, table), answer_all(edge, table)

        return evaluator.each_client(federation, speak, clients=NAMES, stage="x", round=0)

    said, same = words(one), words(other)
    for name in NAMES:
        assert said[name][0] == same[name][0]
        assert said[name][1].texts == same[name][1].texts
        torch.testing.assert_close(
            said[name][1].confidence, same[name][1].confidence, rtol=1e-4, atol=1e-6
        )
    assert len({row["prediction"] for rows, _ in said.values() for row in rows}) > 2


def test_a_client_whose_data_fail_fails_alone(shop: Shop, tiny: SimpleNamespace) -> None:
    federation, data = trained(shop, tiny)

    def broken(batches: Iterator[Batch]) -> Iterator[Batch]:
        yield next(batches)
        raise OSError("a sensor failed")

    def evaluate(edge: EdgeLearner) -> float:
        table = data.private(edge.name, "test")
        batches = iter([table.__getitems__([0, 1, 2]), table.__getitems__([3])])
        return float(edge.loss(broken(batches) if edge.name == "c2" else batches))

    with pytest.warns(UserWarning, match="1 of 8 clients have no scores:\nclient 'c2'.*OSError"):
        losses = judge(data, federation, 8).each_client(
            federation, evaluate, clients=NAMES, stage="x", round=0
        )
    rest = [name for name in NAMES if name != "c2"]
    assert losses == pytest.approx({name: evaluate(federation.edge(name)) for name in rest})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("measure", "sizes"), [("answers", [2, 1] * 2), ("probability", [3] * 2), ("features", [])]
)
def test_tokens_are_those_that_a_device_chooses_alone(
    shop: Shop,
    tiny: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    measure: Any,  # noqa: ANN401
    sizes: list[int],
) -> None:
    sensors = {name: ["pixels", "profile", "fourier"] for name in NAMES}
    model = {"lora": {"dropout": 0.3}, "connector": {"dropout": 0.3}, "max_new_tokens": 6}
    algorithm = CDCCA(steps=tiny.steps(private=2), measure=measure)
    options: dict[str, Any] = {"sensors": sensors, "clients": NAMES[:3], **model}
    alone, _ = shop.run(algorithm, size=1, **options)
    seen = list[int]()
    look = UTS.look_at_each

    def spied(self: UTS, module: Any, batch: Batch, parts: int) -> Any:  # noqa: ANN401
        seen.append(parts)
        return look(self, module, batch, parts)

    monkeypatch.setattr(UTS, "look_at_each", spied)
    together, _ = shop.run(algorithm, size=3 if measure != "answers" else 8, **options)
    assert bool(algorithm.why_alone()) == (measure == "features")
    assert seen == sizes  # with three sensors every sample becomes four rows, of 64 in all
    for one, other in zip(alone, together, strict=True):
        assert one.data is not None
        assert other.data is not None
        assert off(load(one.data), load(other.data)) < 1e-5


@pytest.mark.slow
def test_a_run_with_cohorts_ends_with_the_scores_of_one_without(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"check_val_every_n_rounds": 1, "max_rounds": 2}
    ends = [
        tiny.fit(FedAvg(steps=tiny.steps()), tmp_path / str(size), cohort=size, **options)
        for size in (1, 4)
    ]
    for part in ("clients", "mean", "server", "checks", "confusion"):
        assert off(ends[0][part], ends[1][part]) < 1e-5
