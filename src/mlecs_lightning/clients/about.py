"""What a checkpoint says of its models."""

from __future__ import annotations

from typing import Any

from lightning.fabric import Fabric

from mlecs_lightning.clients.edges import Edges
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.rounds.algorithm import Algorithm

__all__ = ["about"]


def about(
    algorithm: Algorithm, data: FederatedDataModule, edges: Edges, fabric: Fabric
) -> dict[str, Any]:
    """Return what it takes to rebuild models without data or configuration, for a checkpoint.

    Args:
        algorithm: The method.
        data: The data; only how inputs are prepared is told.
        edges: The models.
        fabric: Their precision.
    """
    asked = set(data.public().instructions)
    return {
        "algorithm": type(algorithm).__name__,
        "algorithm_path": f"{type(algorithm).__module__}.{type(algorithm).__qualname__}",
        "adds_parts": algorithm.adds_parts(),
        "adds_edge_parts": algorithm.adds_edge_parts(),
        "data": type(data).__name__,
        "seed": edges.parties.seed,
        "precision": str(fabric.strategy.precision.precision),
        "models": edges.describe(),
        "frozen": edges.frozen_contents(),
        "inputs": {m: p.to_dict() for m, p in data.preparations.items()},
        "instruction": asked.pop() if len(asked) == 1 else None,
    }
