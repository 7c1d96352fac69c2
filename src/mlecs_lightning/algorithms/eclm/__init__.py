"""ECLM: sub-models of a modular cloud model for devices (arXiv 2311.11083)."""

from typing import TYPE_CHECKING

from mlecs_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from mlecs_lightning.algorithms.eclm.algorithm import ECLM

__all__ = ["ECLM"]

__getattr__, __dir__ = lazy_names(__name__, {"ECLM": "algorithm"})
