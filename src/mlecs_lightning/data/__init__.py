"""Data sets, and how their samples and modalities are dealt to the clients."""

from mlecs_lightning.data.base import FederatedDataModule, Pools
from mlecs_lightning.data.digits import Digits
from mlecs_lightning.data.drift import Drift, Shift
from mlecs_lightning.data.hub import HubDataset
from mlecs_lightning.data.manifest.source import Manifest
from mlecs_lightning.data.sampling import SeededLoader
from mlecs_lightning.data.schedule import DomainStream, Phase, Schedule
from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.data.urfall.source import URFall

__all__ = [
    "Digits",
    "DomainStream",
    "Drift",
    "FederatedDataModule",
    "HubDataset",
    "Manifest",
    "Phase",
    "Pools",
    "SampleTable",
    "Schedule",
    "SeededLoader",
    "Shift",
    "URFall",
]
