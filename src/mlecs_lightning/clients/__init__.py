"""The parties of a federation: settings, their checks, and the models built from them."""

from mlecs_lightning.clients.federation import FederationModels
from mlecs_lightning.clients.settings import ClientSettings, DrawnClients, Federation

FederationSettings = Federation  # its name in earlier versions

__all__ = ["ClientSettings", "DrawnClients", "Federation", "FederationModels", "FederationSettings"]
