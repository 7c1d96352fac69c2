"""Modality extractors E_m: one encoder for each modality."""

from mlecs_lightning.nn.extractors.pretrained import PretrainedExtractor
from mlecs_lightning.nn.extractors.small import ImageCNN, SeriesCNN, TextCNN, VectorMLP

__all__ = ["ImageCNN", "PretrainedExtractor", "SeriesCNN", "TextCNN", "VectorMLP"]
