"""Groups of clients with compatible adapters, which are aggregated together."""

from __future__ import annotations

import json
from collections.abc import Mapping

from mlecs_lightning.settings import ModelSettings

__all__ = ["group_clients"]


def group_clients(
    models: Mapping[str, ModelSettings], *, one: bool = False
) -> dict[str, tuple[str, ...]]:
    """Group clients by backbone and adapted layers.

    LoRA ranks may differ within a group if the aggregation supports it. Groups exchange knowledge
    only through the server's representations (our choice, docs/method.md).

    Args:
        models: The settings of each client.
        one: Put all clients into one group, whatever their backbones, because they exchange proxies
            of one kind.

    Returns:
        The clients of each group, in the order of their first clients, by the name of the server's
        tower that hosts the group's SLM (``slm``, ``slm_2``, ``slm_3``, ...).
    """
    members: dict[str, list[str]] = {}
    for name, model in models.items():
        layers = model.lora.target_modules
        alike = [model.backbone.model, model.backbone.revision, layers and sorted(layers)]
        members.setdefault("" if one else json.dumps(alike), []).append(name)
    return {
        f"slm_{number}" if number > 1 else "slm": tuple(clients)
        for number, clients in enumerate(members.values(), start=1)
    }
