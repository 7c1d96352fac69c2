"""Edge-cloud collaboration of multimodal language models on PyTorch Lightning and Fabric.

The public names are imported on first use (PEP 562), so that `import mlecs_lightning` costs
milliseconds and loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlecs_lightning.algorithms import (
        ECLM,
        MLECS,
        Centralized,
        FedAvg,
        Standalone,
        StandalonePublic,
    )
    from mlecs_lightning.data import Digits, FederatedDataModule, Manifest, URFall
    from mlecs_lightning.federated import FederatedTrainer
    from mlecs_lightning.modules import EdgeModule, ServerModule

__version__ = "0.1.0"

__all__ = [
    "ECLM",
    "MLECS",
    "Centralized",
    "Digits",
    "EdgeModule",
    "FedAvg",
    "FederatedDataModule",
    "FederatedTrainer",
    "Manifest",
    "ServerModule",
    "Standalone",
    "StandalonePublic",
    "URFall",
    "__version__",
]

_HOME = {
    "ECLM": "algorithms",
    "MLECS": "algorithms",
    "Centralized": "algorithms",
    "FedAvg": "algorithms",
    "Standalone": "algorithms",
    "StandalonePublic": "algorithms",
    "Digits": "data",
    "FederatedDataModule": "data",
    "Manifest": "data",
    "URFall": "data",
    "FederatedTrainer": "federated",
    "EdgeModule": "modules",
    "ServerModule": "modules",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
