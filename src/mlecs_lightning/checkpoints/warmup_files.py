"""The files of a warm-up: Lightning's own, written and claimed as those of a run are."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from mlecs_lightning.storage.files import load_tensors, save_tensors
from mlecs_lightning.storage.folders import claim_folder

__all__ = ["CheckedIO", "ClaimedLog"]


class CheckedIO(TorchCheckpointIO):
    """Writes checkpoints of the warm-up as those of a run are written, and checks them alike."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        """Write it whole or not at all."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_tensors(Path(path), checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read it, weights only, every byte checked."""
        state: dict[str, Any] = load_tensors(Path(path))
        return state


class ClaimedLog(TensorBoardLogger):
    """Lightning's usual log, in a version that no warm-up begun at the same time takes as well."""

    @cached_property
    def version(self) -> str:
        """The name of the folder; the first process tells the others where it is."""
        if getattr(rank_zero_only, "rank", 0):
            return "version_0"
        return claim_folder(Path(self.root_dir), "version").name
