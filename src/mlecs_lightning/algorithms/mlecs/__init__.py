"""ML-ECS: multimodal LLM edge-cloud collaboration (arXiv 2602.14107)."""

from typing import TYPE_CHECKING

from mlecs_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from mlecs_lightning.algorithms.mlecs.algorithm import MLECS

__all__ = ["MLECS"]

__getattr__, __dir__ = lazy_names(__name__, {"MLECS": "algorithm"})
