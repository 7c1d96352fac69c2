"""What the studies of ECLM share: a cloud that many runs start from, and a run's figures."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import Logger

from mlecs_lightning import FederatedTrainer
from mlecs_lightning.algorithms import LocalTraining
from mlecs_lightning.callbacks import FederatedCallback
from mlecs_lightning.clients import Federation
from mlecs_lightning.data import FederatedDataModule


def begun(
    algorithm: LocalTraining,
    data: FederatedDataModule,
    federation: Federation,
    target: Path,
    **options: Any,
) -> str:
    """Train a cloud once for all runs that start from it; return the state in which they begin.

    Args:
        algorithm: Trains the cloud.
        data: The data.
        federation: The parties.
        target: The checkpoint; it is kept.
        **options: Of the trainer.
    """
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            first = _Begin()
            _trainer(folder, logger=False, callbacks=[first], **options).fit(
                algorithm, data, federation
            )
            (first.folder / "checkpoints/round=0000-partial.ckpt").rename(target)
    return str(target)


def rounds_of(
    algorithm: LocalTraining,
    data: FederatedDataModule,
    federation: Federation,
    *,
    start: str,
    **options: Any,
) -> tuple[list[dict[str, float]], Mapping[str, Any]]:
    """Train a federation from a state that `begun` left; return its rounds' metrics and summary."""
    keeper = Keeper()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(
            folder,
            enable_checkpointing=False,
            allow_other_config=True,  # one cloud for methods that differ in what devices do
            logger=[keeper],
            **options,
        )
        return keeper.rows, trainer.fit(algorithm, data, federation, start)


def _trainer(folder: str, **options: Any) -> FederatedTrainer:
    return FederatedTrainer(
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        limit_test_batches=0,
        default_root_dir=folder,
        **options,
    )


class _Begin(FederatedCallback):
    """Ends a run before its first round."""

    @property
    def should_stop(self) -> bool:
        """See `FederatedCallback`."""
        return True

    def on_fit_start(self, *, max_rounds: int, clients: tuple[str, ...], folder: str) -> None:
        """Remember where the run is."""
        self.folder = Path(folder)


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
