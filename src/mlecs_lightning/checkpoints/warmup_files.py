"""Files of the warm-up: Lightning's own, but written and numbered like those of a run."""

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
    """Writes and checks warm-up checkpoints in the same way as those of a run."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        """Write the file atomically."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_tensors(Path(path), checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the file, weights only, after checking every byte."""
        state: dict[str, Any] = load_tensors(Path(path))
        return state


class ClaimedLog(TensorBoardLogger):
    """Lightning's usual log, in a version folder that no other process can claim."""

    @cached_property
    def version(self) -> str:
        """The name of the folder; rank 0 claims it and tells the others."""
        if getattr(rank_zero_only, "rank", 0):
            return "version_0"
        return claim_folder(Path(self.root_dir), "version").name
