"""What the studies of ECLM share: the warm-up of a cloud, and the figures of a run's rounds."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import Logger

from mlecs_lightning import FederatedTrainer
from mlecs_lightning.algorithms import LocalTraining
from mlecs_lightning.clients import Federation
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.federated.warmup import ServerWarmup


def warmed(
    algorithm: LocalTraining, data: FederatedDataModule, federation: Federation, target: Path
) -> str | None:
    """Train a cloud once for all runs that start from it; the result of a warm-up inside `fit`.

    Args:
        algorithm: Has the objective and the steps.
        data: The data.
        federation: The parties.
        target: The checkpoint; it is kept.

    Returns:
        The checkpoint; ``None`` if the algorithm takes no warm-up.
    """
    if algorithm.steps.warmup == 0:
        return None
    if not target.exists():
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            place = {"default_root_dir": folder, "accelerator": "cpu", "devices": 1}
            written = ServerWarmup({**quiet, **place}).warmup(algorithm, data, federation)
            assert written is not None
            written.rename(target)
    return str(target)


def rounds_of(
    algorithm: LocalTraining,
    data: FederatedDataModule,
    federation: Federation,
    *,
    warm: str | None,
    **options: Any,
) -> tuple[list[dict[str, float]], Mapping[str, Any]]:
    """Train a federation; return the metrics of its rounds, and its summary."""
    keeper = Keeper()
    with tempfile.TemporaryDirectory() as folder:
        trainer = FederatedTrainer(
            accelerator="cpu",
            devices=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            limit_test_batches=0,
            warmup_ckpt_path=warm,
            logger=[keeper],
            default_root_dir=folder,
            **options,
        )
        return keeper.rows, trainer.fit(algorithm, data, federation)


class Keeper(Logger):
    """A logger that keeps the metrics of the rounds of a run."""

    name, version = "keeper", 0

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep a round; what comes before the first is the warm-up."""
        if "round" in metrics:
            self.rows.append(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the script has them."""
