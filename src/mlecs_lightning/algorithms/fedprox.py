"""FedProx over LoRA adapters (arXiv 1812.06127)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mlecs_lightning.algorithms.fedavg import FedAvg
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.modules import EdgeModule, Losses, Objective
from mlecs_lightning.rounds import EdgeLearner
from mlecs_lightning.types import Batch
from mlecs_lightning.wire import Message

__all__ = ["FedProx"]


class FedProx(FedAvg):
    """FedAvg with a proximal term that keeps clients near the adapter that they received.

    L = L_LM + mu/2 ||w - w_received||^2 over the adapter. Extractors and connectors have no common
    value to stay near to.
    """

    def __init__(self, *, mu: float = 0.01, **options: Any) -> None:
        """Set passes, aggregation and the proximal term.

        Args:
            mu: Weight of the proximal term; 0 is FedAvg.
            **options: See `FedAvg`.

        Raises:
            ConfigurationError: If ``mu`` is negative.
            ValueError: If another value is out of range.
        """
        super().__init__(**options)
        if mu < 0:
            raise ConfigurationError(f"algorithm.init_args.mu must not be negative, got {mu}")
        self.mu = mu

    def losses(self) -> dict[str, tuple[str, ...]]:
        """Name the losses of `proximal`."""
        return dict.fromkeys(super().losses(), ("loss", "lm", "proximal"))

    def edge_objective(self, edge: EdgeLearner, broadcast: Message | None) -> Objective | None:
        """Return L_LM with the proximal term."""
        assert broadcast is not None
        received = broadcast.component("adapter")
        near = {k: v.to(edge.module.device) for k, v in received.items()}
        return partial(self.proximal, received=near)

    def proximal(self, edge: EdgeModule, batch: Batch, *, received: dict[str, Tensor]) -> Losses:
        """L = L_LM + mu/2 ||w - w_received||^2."""
        lm = edge.read(batch).loss
        own = edge.backbone.adapter_parameters()
        distance = torch.stack([(own[k] - v).square().sum() for k, v in received.items()]).sum()
        return {"loss": lm + self.mu / 2 * distance, "lm": lm, "proximal": distance}
