"""A run with cohorts that is stopped in the middle of a round ends with the same bits."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlecs_lightning.algorithms import CoPLMs, FedAvg
from mlecs_lightning.callbacks import FederatedCallback
from mlecs_lightning.checkpoints import CheckpointError
from mlecs_lightning.clients import ClientSettings
from mlecs_lightning.rounds import Algorithm
from mlecs_lightning.rounds.signals import Interrupted
from tests.unit.cohorts.conftest import off

NAMES = tuple(f"c{n}" for n in range(5))


class Stops(FederatedCallback):
    """Asks the run to stop when a client has been served in the second round."""

    def __init__(self, client: str) -> None:
        self.client, self.served = client, list[str]()

    def on_client_end(self, *, round: int, client: str, metrics: Any) -> None:  # noqa: ANN401
        self.served += [client] * round
        if (round, client) == (1, self.client):
            os.kill(os.getpid(), signal.SIGTERM)


def fit(
    tiny: SimpleNamespace,
    root: Path,
    ckpt_path: str | None = None,
    *,
    make: Callable[..., Algorithm] = FedAvg,
    **options: Any,
) -> None:
    edge = tiny.model(lora={"dropout": 0.3}, connector={"dropout": 0.3})
    named = {name: ClientSettings(["fourier", "profile"]) for name in NAMES}
    settings = tiny.parties(named, edge=edge, server=edge)
    options = {"max_rounds": 2, "enable_checkpointing": True, "cohort": 2, **options}
    trainer = tiny.trainer(root, **options)
    trainer.fit(make(steps=tiny.steps()), tiny.data(), settings, ckpt_path)


def last(root: Path) -> dict[str, Any]:
    path = max(root.glob("tiny/version_0/checkpoints/*.ckpt"))
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


@pytest.mark.parametrize("make", [FedAvg, pytest.param(CoPLMs, marks=pytest.mark.slow)])
def test_stopped_in_the_middle_of_a_cohort(
    tiny: SimpleNamespace, tmp_path: Path, make: Callable[..., Algorithm]
) -> None:
    fit(tiny, tmp_path / "whole", make=make)
    stops = Stops("c2")
    with pytest.raises(Interrupted):
        fit(tiny, tmp_path / "parts", make=make, callbacks=[stops])
    assert stops.served == ["c0", "c1", "c2", "c3"]  # c3 had trained with c2
    with pytest.raises(CheckpointError, match=r"trainer.cohort: 2 in the checkpoint, 3 now"):
        fit(tiny, tmp_path / "parts", "last", make=make, cohort=3)
    fit(tiny, tmp_path / "parts", "last", make=make)
    whole, parts = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert len(whole["clients"]) == len(NAMES)
    for key in ("server", "clients", "history", "ledger"):
        assert off(whole[key], parts[key]) == 0.0, key


def test_a_cohort_has_clients(tiny: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer.cohort must be auto or at least 1, got 0"):
        tiny.trainer(tmp_path, cohort=0)
