"""Building blocks in torch and Hugging Face: extractors, connector, backbone, tower."""

from mlecs_lightning.nn.backbone import Backbone
from mlecs_lightning.nn.connector import Connector, Embeddings
from mlecs_lightning.nn.extractors.pretrained import PretrainedExtractor
from mlecs_lightning.nn.extractors.small import ImageCNN, SeriesCNN, TextCNN, VectorMLP
from mlecs_lightning.nn.tower import Tower, TowerOutput

__all__ = [
    "Backbone",
    "Connector",
    "Embeddings",
    "ImageCNN",
    "PretrainedExtractor",
    "SeriesCNN",
    "TextCNN",
    "Tower",
    "TowerOutput",
    "VectorMLP",
]
