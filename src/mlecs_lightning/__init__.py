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
        FediLoRA,
        FedMD,
        FedProx,
        MultiFedAvg,
        Standalone,
        StandalonePublic,
        Steps,
    )
    from mlecs_lightning.callbacks import EarlyStopping, FederatedCallback
    from mlecs_lightning.clients import ClientSettings, DrawnClients, Federation
    from mlecs_lightning.data import Digits, FederatedDataModule, HubDataset, Manifest, URFall
    from mlecs_lightning.deploy import (
        DeviceModel,
        ExportedModel,
        load_device_model,
        load_exported,
    )
    from mlecs_lightning.federated import FederatedTrainer, TrainedRun, load_run
    from mlecs_lightning.modules import EdgeModule, ServerModule
    from mlecs_lightning.rounds import FailureTrace, Participation, UpdateLimits
    from mlecs_lightning.settings import (
        BackboneSettings,
        ConnectorSettings,
        LoraSettings,
        ModelSettings,
    )
    from mlecs_lightning.wire import DWC, MessageLimits

__version__ = "0.1.0"

__all__ = [
    "CDCCA",
    "DWC",
    "ECLM",
    "MLECS",
    "BackboneSettings",
    "Centralized",
    "ClientSettings",
    "CoPLMs",
    "ConnectorSettings",
    "DeviceModel",
    "Digits",
    "DrawnClients",
    "EarlyStopping",
    "EdgeModule",
    "ExportedModel",
    "FailureTrace",
    "FedAvg",
    "FedMD",
    "FedProx",
    "FederatedCallback",
    "FederatedDataModule",
    "FederatedTrainer",
    "Federation",
    "FediLoRA",
    "HubDataset",
    "LoraSettings",
    "Manifest",
    "MessageLimits",
    "ModelSettings",
    "MultiFedAvg",
    "Participation",
    "ServerModule",
    "Standalone",
    "StandalonePublic",
    "Steps",
    "TrainedRun",
    "URFall",
    "UpdateLimits",
    "__version__",
    "load_device_model",
    "load_exported",
    "load_run",
]

_HOMES = {
    "CDCCA": "algorithms",
    "ECLM": "algorithms",
    "MLECS": "algorithms",
    "Centralized": "algorithms",
    "CoPLMs": "algorithms",
    "FedAvg": "algorithms",
    "FedMD": "algorithms",
    "FedProx": "algorithms",
    "FediLoRA": "algorithms",
    "MultiFedAvg": "algorithms",
    "Standalone": "algorithms",
    "StandalonePublic": "algorithms",
    "Steps": "algorithms",
    "EarlyStopping": "callbacks",
    "FederatedCallback": "callbacks",
    "ClientSettings": "clients",
    "DrawnClients": "clients",
    "Federation": "clients",
    "Digits": "data",
    "FederatedDataModule": "data",
    "HubDataset": "data",
    "Manifest": "data",
    "URFall": "data",
    "DeviceModel": "deploy",
    "ExportedModel": "deploy",
    "load_device_model": "deploy",
    "load_exported": "deploy",
    "FederatedTrainer": "federated",
    "TrainedRun": "federated",
    "load_run": "federated",
    "EdgeModule": "modules",
    "ServerModule": "modules",
    "FailureTrace": "rounds",
    "Participation": "rounds",
    "UpdateLimits": "rounds",
    "BackboneSettings": "settings",
    "ConnectorSettings": "settings",
    "LoraSettings": "settings",
    "ModelSettings": "settings",
    "DWC": "wire",
    "MessageLimits": "wire",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
