"""Who takes part in a round, and under what rules."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from mlecs_lightning.errors import FaultList
from mlecs_lightning.rounds.context import derive_seed
from mlecs_lightning.rounds.failures import FaultTrace

__all__ = ["LargeUpdate", "LoopSettings", "sample_clients"]

LargeUpdate = Literal["refuse", "clip"]


def sample_clients(
    clients: tuple[str, ...], fraction: float, *, seed: int, round: int
) -> tuple[str, ...]:
    """Return the participants of a round, a function of seed and round alone.

    Args:
        clients: All clients.
        fraction: Share of them, at least one; drawn without replacement.
        seed: Base seed of the run.
        round: The round.

    Returns:
        The drawn clients, in their old order.
    """
    count = max(1, int(fraction * len(clients) + 0.5))
    if count == len(clients):
        return clients
    drawn = random.Random(derive_seed(seed, round, "participants")).sample(clients, count)
    return tuple(client for client in clients if client in set(drawn))


@dataclass(frozen=True)
class LoopSettings:
    """The trainer's options that concern rounds; see `FederatedTrainer`."""

    val_every: int
    limit_train: int | None
    client_fraction: float
    min_clients: int
    faults: FaultTrace | None
    max_update_norm: float | None
    max_update_ratio: float | None
    large_update: LargeUpdate
    keeps_messages: bool

    def validates(self, round: int) -> bool:
        """Return whether a validation is due after a round."""
        return bool(self.val_every) and (round + 1) % self.val_every == 0

    def __post_init__(self) -> None:
        """Check ranges."""
        faults = FaultList()
        if self.val_every < 0:
            faults.append(
                f"trainer.check_val_every_n_rounds must be at least 0, got {self.val_every}"
            )
        if not 0 < self.client_fraction <= 1:
            faults.append(f"trainer.client_fraction must lie in (0, 1], got {self.client_fraction}")
        if self.min_clients < 0:
            faults.append(f"trainer.min_clients must be at least 0, got {self.min_clients}")
        for name in ("max_update_norm", "max_update_ratio"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                faults.append(f"trainer.{name} must be above 0, got {limit}")
        faults.raise_any()
