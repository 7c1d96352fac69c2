"""Export of trained models to a folder, to publish them or to run them on a device."""

from mlecs_lightning.deploy.device_model import DeviceModel, load_device_model
from mlecs_lightning.deploy.folder import Provenance, write_export
from mlecs_lightning.deploy.model import ExportedModel, load_exported
from mlecs_lightning.deploy.programs import ProgramFormat, write_programs

__all__ = [
    "DeviceModel",
    "ExportedModel",
    "ProgramFormat",
    "Provenance",
    "load_device_model",
    "load_exported",
    "write_export",
    "write_programs",
]
