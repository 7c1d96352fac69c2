"""FediLoRA: adapters of different ranks, averaged rank by rank (arXiv 2509.06984)."""

from __future__ import annotations

from typing import Any

import torch

from mlecs_lightning.aggregation import Aggregation
from mlecs_lightning.algorithms.fedavg import FedAvg
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.rounds import EdgeLearner, Loaders, RoundContext
from mlecs_lightning.wire import Message

__all__ = ["FediLoRA"]


class FediLoRA(FedAvg):
    """FedAvg for adapters of different ranks, with repair of the layer that strays most.

    Each rank dimension is averaged over the clients that have it (``aggregation: dimensions``).
    After its training, a client compares A of every layer with the A that it received, and draws
    the least similar one back: A <- s A + (1 - s) A_received, where s is their cosine. Not in round
    0, when nothing has been aggregated yet.

    Source: the paper and its public code, which edits A where s is below 0.95. Where ours differs:
    the scale alpha / r is part of what is averaged, because it differs with the rank under PEFT;
    and public data are used as in our other baselines.
    """

    def __init__(
        self,
        *,
        repair_below: float = 0.95,
        aggregation: Aggregation = "dimensions",
        **options: Any,
    ) -> None:
        """Set passes, aggregation and repair.

        Args:
            repair_below: Cosine below which a layer is repaired, in [-1, 1]; -1 repairs none.
            aggregation: How adapters are averaged; see `AdapterAggregator`.
            **options: See `FedAvg`.

        Raises:
            ConfigurationError: If ``repair_below`` is out of range.
            ValueError: If another value is out of range.
        """
        super().__init__(aggregation=aggregation, **options)
        if not -1 <= repair_below <= 1:
            raise ConfigurationError(
                f"algorithm.init_args.repair_below must lie in [-1, 1], got {repair_below}"
            )
        self.repair_below = repair_below

    def local_passes(
        self,
        edge: EdgeLearner,
        loaders: Loaders,
        ctx: RoundContext,
        broadcast: Message | None = None,
    ) -> dict[str, float]:
        """Take both passes, then repair the layer that has moved furthest."""
        losses = super().local_passes(edge, loaders, ctx, broadcast)
        if ctx.round > 0:
            assert broadcast is not None
            self._repair(edge, broadcast)
        return losses

    def _repair(self, edge: EdgeLearner, broadcast: Message) -> None:
        received = broadcast.component("adapter")
        own = {k: a for k, a in edge.module.adapter_state().items() if ".lora_A." in k}
        if not own:
            return  # A is frozen
        cosine = {
            key: float(torch.cosine_similarity(a.flatten(), received[key].to(a).flatten(), dim=0))
            for key, a in own.items()
        }
        worst = min(cosine, key=cosine.__getitem__)
        if cosine[worst] < self.repair_below:
            edge.module.load_adapter_state({worst: received[worst]}, mix=1 - cosine[worst])
