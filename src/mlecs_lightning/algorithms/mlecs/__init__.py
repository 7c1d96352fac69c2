"""ML-ECS (arXiv 2602.14107)."""

from mlecs_lightning.algorithms.mlecs.algorithm import MLECS

__all__ = ["MLECS"]
