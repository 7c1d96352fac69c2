"""Checkpoints of runs and of the warm-up: written, listed, and read again."""

from mlecs_lightning.checkpoints.checkpoint import CheckpointError

__all__ = ["CheckpointError"]
