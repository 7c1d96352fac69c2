"""L_LM leaves out samples without a target, in every pass of every method."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mlecs_lightning import MLECS
from mlecs_lightning.algorithms import (
    CDCCA,
    ECLM,
    Centralized,
    CoPLMs,
    FedProx,
)
from mlecs_lightning.algorithms.cdcca.distillation import Lesson
from mlecs_lightning.clients import ClientSettings
from mlecs_lightning.data import SampleTable
from mlecs_lightning.modules import Losses, Objective
from mlecs_lightning.rounds import Algorithm
from mlecs_lightning.rounds.learner import Learner
from mlecs_lightning.types import Batch

MLP = {"lora": {"target_modules": ["c_fc", "mlp.c_proj"]}}
CASES: dict[str, tuple[Callable[..., Algorithm], dict[str, Any]]] = {
    "FedProx": (FedProx, {"mu": 0.0}),
    "CoPLMs": (CoPLMs, {}),
    "Centralized": (Centralized, {}),
    "MLECS": (MLECS, {}),
    # Without what is drawn for each sample: the labelled ones alone would be drawn otherwise.
    "ECLM": (ECLM, {"modules": 4, "active": 4, "gate_noise": 0.0, "modality_dropout": 0.0}),
    "CDCCA": (CDCCA, {"token_dropout": 0.0}),
}
# Losses over target tokens: whatever else a method adds is about inputs as well.
OF_TARGETS = ("lm", "lm_llm", "lm_slm", "lm_proxy", "divergence", "replay")


def targets_of(batch: Batch | Lesson) -> tuple[str, ...]:
    return batch.replay.targets if isinstance(batch, Lesson) else batch.targets


def labelled_alone(batch: Batch | Lesson) -> Batch | Lesson:
    """Return the same step without the samples that have no target."""
    if isinstance(batch, Lesson):
        alone = labelled_alone(batch.replay)
        assert isinstance(alone, Batch)
        return batch._replace(replay=alone)
    rows = [i for i, target in enumerate(batch.targets) if target]
    rows = rows * 2 if len(rows) == 1 else rows  # a contrast needs two, and a mean stays the same
    return Batch(
        ids=tuple(batch.ids[i] for i in rows),
        modalities=batch.modalities,
        inputs={m: x[rows] for m, x in batch.inputs.items()},
        present=batch.present[rows],
        instructions=tuple(batch.instructions[i] for i in rows),
        targets=tuple(batch.targets[i] for i in rows),
    )


@contextmanager
def checked_steps() -> Iterator[list[tuple[str, int, int]]]:
    """Compare each training step with the same step of its labelled samples alone.

    Yields learner, number of samples and number of targets of each step.
    """
    steps: list[tuple[str, int, int]] = []
    evaluate = Learner._evaluate

    def both(self: Learner[Any], batch: Batch | Lesson, objective: Objective | None) -> Losses:
        before = torch.get_rng_state()
        losses = evaluate(self, batch, objective)
        after = torch.get_rng_state()
        targets = targets_of(batch)
        if self.module.training:
            steps.append((f"{self.name} {self.stage}", len(targets), sum(map(bool, targets))))
            mine = of_targets(losses)
            assert all(bool(torch.isfinite(value)) for value in losses.values())
            if not any(targets):
                assert mine
                assert all(float(value) == 0 for value in mine.values())
            elif not all(targets):
                torch.set_rng_state(before)
                with torch.no_grad():
                    alone = of_targets(evaluate(self, labelled_alone(batch), objective))
                torch.testing.assert_close(mine, alone, rtol=2e-4, atol=1e-5)
            torch.set_rng_state(after)
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "_evaluate", both)
        yield steps


def of_targets(losses: Losses) -> dict[str, Tensor]:
    found = {k: v.detach() for k, v in losses.items() if k in OF_TARGETS}
    return found or {"loss": losses["loss"].detach()}


@pytest.mark.parametrize("name", CASES)
def test_a_step_learns_from_its_labelled_samples_alone(
    tiny: SimpleNamespace, tmp_path: Path, name: str
) -> None:
    kind, options = CASES[name]
    algorithm = kind(steps=tiny.steps(warmup=4, public=4, private=1, server=4), **options)
    model = tiny.model(**(MLP if name == "ECLM" else {}))
    clients = {"kitchen": ClientSettings(["pixels", "profile", "fourier"])}  # as CDCCA needs
    data = tiny.data(batch_size=2)
    data.setup()
    data._public["train"] = mostly_unlabelled(data._public["train"])
    with checked_steps() as steps:
        tiny.fit(algorithm, tmp_path, tiny.parties(clients, server=model, edge=model), data)
    public = [(n, known) for where, n, known in steps if "private" not in where]
    assert any(known == 0 for _, known in public), "a batch without targets"
    assert any(0 < known < n for n, known in public), "a batch with some"


def mostly_unlabelled(table: SampleTable) -> SampleTable:
    """Keep the targets of a third of the samples: batches of two then have none, one or two."""
    hidden = [sample for n, sample in enumerate(table.ids) if n % 3]
    return table.with_targets(dict.fromkeys(hidden, ""))
