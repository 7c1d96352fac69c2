"""Callbacks of the federated loop."""

from mlecs_lightning.callbacks.base import FederatedCallback
from mlecs_lightning.callbacks.progress import RichProgress

__all__ = ["FederatedCallback", "RichProgress"]
