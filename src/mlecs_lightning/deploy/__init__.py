"""Trained models outside of a federation: a folder to publish or to copy to a device."""

from mlecs_lightning.deploy.folder import Provenance, write_export
from mlecs_lightning.deploy.model import ExportedModel, load_exported

__all__ = ["ExportedModel", "Provenance", "load_exported", "write_export"]
