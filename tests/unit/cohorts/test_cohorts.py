"""A client's result does not depend on whether, and with whom, it trains in a cohort."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mlecs_lightning import MLECS
from mlecs_lightning.algorithms import FedAvg, FedProx, Standalone, StandalonePublic
from tests.unit.cohorts.conftest import NAMES, Shop, off

PLAIN = {
    "optimizer": {"class_path": "SGD", "init_args": {"lr": 0.01, "momentum": 0.9}},
    "lr_scheduler": {"class_path": "StepLR", "init_args": {"step_size": 1, "gamma": 0.5}},
}
DROPS = {
    "optimizer": {"class_path": "AdamW", "init_args": {"lr": 2e-4}},
    "lora": {"dropout": 0.3, "private_r": 2},
    "connector": {"dropout": 0.3},
}
CASES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "private data": (Standalone, PLAIN),
    "both passes in turn": (
        lambda steps: StandalonePublic(steps=steps, order="interleaved"),
        {**DROPS, "clip": 0.1},
    ),
    "messages": (FedAvg, {**DROPS, "clip": 1.0}),
    "B alone": (lambda steps: FedAvg(steps=steps, aggregation="freeze_a"), PLAIN),
    "proximal": (lambda steps: FedProx(steps=steps, mu=0.5), {**DROPS, "clip": 0.1}),
    "contrast": (MLECS, DROPS),
}


@pytest.mark.parametrize("case", CASES)
def test_alone_and_in_a_cohort(
    shop: Shop, tiny: SimpleNamespace, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, options = CASES[case]
    algorithm = make(steps=tiny.steps())
    alone, one = shop.run(algorithm, NAMES, size=1, rounds=2, **options)
    together, other = shop.run(algorithm, NAMES, size=8, rounds=2, **options)
    assert off(one, other) < 1e-6
    for left, right in zip(alone, together, strict=True):
        assert (left.client, left.failure) == (right.client, right.failure)
        assert off(left.figures, right.figures) < 1e-5
    assert "after another" not in caplog.text
