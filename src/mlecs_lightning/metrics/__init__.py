"""Metrics of generated text; all but those of continual learning are in [0, 1]."""

from mlecs_lightning.metrics.continual import ContinualScores, continual_scores
from mlecs_lightning.metrics.evaluation import TextMetrics, constant_row
from mlecs_lightning.metrics.labels import LabelReader, LabelScores, keyword_label_reader
from mlecs_lightning.metrics.references import ReferencedText, references_of
from mlecs_lightning.metrics.text import ROUGE, BertScore, ExactMatch, RougeLsum
from mlecs_lightning.metrics.words import UnicodeTokenizer, has_words, normalise

__all__ = [
    "ROUGE",
    "BertScore",
    "ContinualScores",
    "ExactMatch",
    "LabelReader",
    "LabelScores",
    "ReferencedText",
    "RougeLsum",
    "TextMetrics",
    "UnicodeTokenizer",
    "constant_row",
    "continual_scores",
    "has_words",
    "keyword_label_reader",
    "normalise",
    "references_of",
]
