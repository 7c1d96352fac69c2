"""Edge-cloud collaboration of multimodal language models on PyTorch Lightning and Fabric.

The public names are imported on first use (PEP 562), so that `import mlecs_lightning` costs
milliseconds and loads neither torch nor transformers.
"""

from typing import TYPE_CHECKING

from mlecs_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from mlecs_lightning.algorithms import (
        CDCCA,
        ECLM,
        MLECS,
        Centralized,
        CoPLMs,
        FedAvg,
        FedProx,
        Standalone,
        StandalonePublic,
    )
    from mlecs_lightning.data import Digits, FederatedDataModule, HubDataset, Manifest, URFall
    from mlecs_lightning.deploy import ExportedModel, load_exported
    from mlecs_lightning.federated import FederatedTrainer
    from mlecs_lightning.modules import EdgeModule, ServerModule

__version__ = "0.1.0"

__all__ = [
    "CDCCA",
    "ECLM",
    "MLECS",
    "Centralized",
    "CoPLMs",
    "Digits",
    "EdgeModule",
    "ExportedModel",
    "FedAvg",
    "FedProx",
    "FederatedDataModule",
    "FederatedTrainer",
    "HubDataset",
    "Manifest",
    "ServerModule",
    "Standalone",
    "StandalonePublic",
    "URFall",
    "__version__",
    "load_exported",
]

_HOMES = {
    "CDCCA": "algorithms",
    "ECLM": "algorithms",
    "MLECS": "algorithms",
    "Centralized": "algorithms",
    "CoPLMs": "algorithms",
    "FedAvg": "algorithms",
    "FedProx": "algorithms",
    "Standalone": "algorithms",
    "StandalonePublic": "algorithms",
    "Digits": "data",
    "FederatedDataModule": "data",
    "HubDataset": "data",
    "Manifest": "data",
    "URFall": "data",
    "ExportedModel": "deploy",
    "load_exported": "deploy",
    "FederatedTrainer": "federated",
    "EdgeModule": "modules",
    "ServerModule": "modules",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
