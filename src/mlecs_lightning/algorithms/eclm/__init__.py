"""ECLM (arXiv 2311.11083): devices with parts of one model."""

from mlecs_lightning.algorithms.eclm.algorithm import ECLM

__all__ = ["ECLM"]
