"""CD-CCA: cloud-device collaborative continual adaptation (arXiv 2312.16279)."""

from typing import TYPE_CHECKING

from mlecs_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from mlecs_lightning.algorithms.cdcca.algorithm import CDCCA

__all__ = ["CDCCA"]

__getattr__, __dir__ = lazy_names(__name__, {"CDCCA": "algorithm"})
