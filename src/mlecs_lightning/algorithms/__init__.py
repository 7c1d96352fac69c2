"""The algorithms: a file or a folder each.

The names are imported on first use, so that an algorithm's section of the report can be drawn
without torch. Whoever looks for subclasses of `Algorithm` calls `lazy.import_all` first.
"""

from typing import TYPE_CHECKING

from mlecs_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from mlecs_lightning.algorithms.base import LocalTraining, Steps
    from mlecs_lightning.algorithms.cdcca.algorithm import CDCCA
    from mlecs_lightning.algorithms.coplms import CoPLMs
    from mlecs_lightning.algorithms.eclm.algorithm import ECLM
    from mlecs_lightning.algorithms.fedavg import FedAvg
    from mlecs_lightning.algorithms.fedilora import FediLoRA
    from mlecs_lightning.algorithms.fedmd import FedMD
    from mlecs_lightning.algorithms.fedprox import FedProx
    from mlecs_lightning.algorithms.mlecs.algorithm import MLECS
    from mlecs_lightning.algorithms.multifedavg import MultiFedAvg
    from mlecs_lightning.algorithms.standalone import Centralized, Standalone, StandalonePublic

__all__ = [
    "CDCCA",
    "ECLM",
    "MLECS",
    "Centralized",
    "CoPLMs",
    "FedAvg",
    "FedMD",
    "FedProx",
    "FediLoRA",
    "LocalTraining",
    "MultiFedAvg",
    "Standalone",
    "StandalonePublic",
    "Steps",
]

_HOMES = {
    "CDCCA": "cdcca.algorithm",
    "ECLM": "eclm.algorithm",
    "MLECS": "mlecs.algorithm",
    "Centralized": "standalone",
    "CoPLMs": "coplms",
    "FedAvg": "fedavg",
    "FedMD": "fedmd",
    "FedProx": "fedprox",
    "FediLoRA": "fedilora",
    "LocalTraining": "base",
    "MultiFedAvg": "multifedavg",
    "Standalone": "standalone",
    "StandalonePublic": "standalone",
    "Steps": "base",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
