"""The parties of a federation: settings, their checks, and the models built from them."""

from mlecs_lightning.clients.federation import Federation
from mlecs_lightning.clients.settings import ClientSettings, DrawnClients, FederationSettings

__all__ = ["ClientSettings", "DrawnClients", "Federation", "FederationSettings"]
