"""The command line."""

from mlecs_lightning.cli.commands import main
from mlecs_lightning.cli.parser import FederatedCLI

__all__ = ["FederatedCLI", "main"]
