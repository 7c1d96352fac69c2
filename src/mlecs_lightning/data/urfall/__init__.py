"""The UR Fall Detection data set, read from its official files."""

from mlecs_lightning.data.urfall.source import URFall

__all__ = ["URFall"]
