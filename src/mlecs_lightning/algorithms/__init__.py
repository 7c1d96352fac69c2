"""The methods: one file each."""

from mlecs_lightning.algorithms.base import LocalTraining, Steps
from mlecs_lightning.algorithms.eclm import ECLM
from mlecs_lightning.algorithms.fedavg import FedAvg
from mlecs_lightning.algorithms.mlecs import MLECS
from mlecs_lightning.algorithms.standalone import Centralized, Standalone, StandalonePublic

__all__ = [
    "ECLM",
    "MLECS",
    "Centralized",
    "FedAvg",
    "LocalTraining",
    "Standalone",
    "StandalonePublic",
    "Steps",
]
