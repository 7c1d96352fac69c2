"""CD-CCA (arXiv 2312.16279): uncertain tokens up, distillation in the cloud."""

from mlecs_lightning.algorithms.cdcca.algorithm import CDCCA

__all__ = ["CDCCA"]
