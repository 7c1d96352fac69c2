"""Export of trained models to a folder, to publish them or to run them on a device."""

from mlecs_lightning.deploy.folder import Provenance, write_export
from mlecs_lightning.deploy.model import ExportedModel, load_exported

__all__ = ["ExportedModel", "Provenance", "load_exported", "write_export"]
