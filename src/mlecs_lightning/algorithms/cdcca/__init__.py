"""CD-CCA (arXiv 2312.16279): uncertain tokens up, distillation in the cloud."""

from typing import TYPE_CHECKING

from mlecs_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from mlecs_lightning.algorithms.cdcca.algorithm import CDCCA

__all__ = ["CDCCA"]

__getattr__, __dir__ = lazy_names(__name__, {"CDCCA": "algorithm"})
