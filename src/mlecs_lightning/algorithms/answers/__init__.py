"""Pseudo-labels: clients and server exchange their answers to public samples."""

from mlecs_lightning.algorithms.answers.exchange import (
    Answered,
    AnsweredAdapters,
    Answers,
    Questions,
    answer_all,
    taught,
)
from mlecs_lightning.algorithms.answers.labels import Labels

__all__ = ["Answered", "AnsweredAdapters", "Answers", "Labels", "Questions", "answer_all", "taught"]
