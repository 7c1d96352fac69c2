"""Pseudo-labels that travel: clients and server exchange their answers to public samples."""

from mlecs_lightning.algorithms.answers.exchange import Answers
from mlecs_lightning.algorithms.answers.labels import Labels

__all__ = ["Answers", "Labels"]
