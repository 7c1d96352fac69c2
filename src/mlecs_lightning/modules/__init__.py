"""LightningModules of the edge devices (SLM) and of the server (LLM)."""

from mlecs_lightning.modules.base import Losses, MultimodalLM, Objective
from mlecs_lightning.modules.edge import EdgeModule
from mlecs_lightning.modules.server import ServerModule

__all__ = ["EdgeModule", "Losses", "MultimodalLM", "Objective", "ServerModule"]
