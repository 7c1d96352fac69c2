"""Your own data: a manifest with one sample per line, and the files that it names."""

from mlecs_lightning.data.manifest.source import Manifest

__all__ = ["Manifest"]
