"""Samples from a folder of files and one JSON line for each."""

from mlecs_lightning.data.manifest.source import Manifest

__all__ = ["Manifest"]
