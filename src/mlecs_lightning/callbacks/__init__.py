"""Callbacks of the federated loop."""

from mlecs_lightning.callbacks.base import FederatedCallback
from mlecs_lightning.callbacks.early_stopping import EarlyStopping
from mlecs_lightning.callbacks.progress import RichProgress

__all__ = ["EarlyStopping", "FederatedCallback", "RichProgress"]
