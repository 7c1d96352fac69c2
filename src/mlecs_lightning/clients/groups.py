"""Clients whose adapters fit one another: those are aggregated together, and with nobody else."""

from __future__ import annotations

import json
from collections.abc import Mapping

from mlecs_lightning.settings import ModelSettings

__all__ = ["group_clients"]


def group_clients(
    models: Mapping[str, ModelSettings], *, one: bool = False
) -> dict[str, tuple[str, ...]]:
    """Put clients with the same backbone and the same adapted layers into one group.

    Ranks may differ within a group, if the aggregation allows it. Groups reach each other through
    the server's representations alone (our choice, docs/method.md).

    Args:
        models: The settings of each client.
        one: Put all into one group, whatever their backbones: where proxies of one kind travel.

    Returns:
        For each group, in the order of their first clients, the server's tower that hosts its SLM
        (``slm``, ``slm_2``, ``slm_3``, ...) and the clients.
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
