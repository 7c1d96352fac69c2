"""The methods: one file each."""

from mlecs_lightning.algorithms.base import LocalTraining, Steps
from mlecs_lightning.algorithms.cdcca.algorithm import CDCCA
from mlecs_lightning.algorithms.coplms import CoPLMs
from mlecs_lightning.algorithms.eclm.algorithm import ECLM
from mlecs_lightning.algorithms.fedavg import FedAvg
from mlecs_lightning.algorithms.fedprox import FedProx
from mlecs_lightning.algorithms.mlecs.algorithm import MLECS
from mlecs_lightning.algorithms.standalone import Centralized, Standalone, StandalonePublic

__all__ = [
    "CDCCA",
    "ECLM",
    "MLECS",
    "Centralized",
    "CoPLMs",
    "FedAvg",
    "FedProx",
    "LocalTraining",
    "Standalone",
    "StandalonePublic",
    "Steps",
]
