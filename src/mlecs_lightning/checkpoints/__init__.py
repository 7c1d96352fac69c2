"""What is kept on disk, and how it is read again."""

from mlecs_lightning.checkpoints.checkpoint import CheckpointError

__all__ = ["CheckpointError"]
