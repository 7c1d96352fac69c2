"""Which clients take part in a round, and the trainer's settings for it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from mlecs_lightning.errors import ConfigurationError, FaultList
from mlecs_lightning.rounds.bounds import UpdateLimits
from mlecs_lightning.rounds.context import derive_seed
from mlecs_lightning.rounds.failures import FailureTrace
from mlecs_lightning.rounds.privacy import Privacy, poisson_clients

__all__ = ["Limit", "LoopSettings", "Participation", "limited", "sample_clients", "scored_clients"]

Limit = int | float | None
"""A number of clients, or, as a float, a fraction of them; ``None`` for all."""


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
    count = limited(float(fraction), len(clients))  # 1 means all here, not one client
    return _drawn(clients, count, seed=derive_seed(seed, round, "participants"))


def scored_clients(
    clients: tuple[str, ...], limit: Limit, *, seed: int, round: int
) -> tuple[str, ...]:
    """Return the clients that are scored after a round, a function of seed and round alone.

    The draw does not depend on who takes part in the round.

    Args:
        clients: All that have samples to be scored on.
        limit: How many of them; drawn without replacement.
        seed: Base seed of the run.
        round: The round.

    Returns:
        The drawn clients, in their old order.
    """
    count = limited(limit, len(clients))
    return _drawn(clients, count, seed=derive_seed(seed, round, "scored"))


def limited(limit: Limit, clients: int) -> int:
    """Return how many of some clients a limit allows: a fraction is rounded, and at least one."""
    if limit is None:
        return clients
    count = int(limit * clients + 0.5) if isinstance(limit, float) else limit
    return min(clients, max(1, count))


def _drawn(clients: tuple[str, ...], count: int, *, seed: int) -> tuple[str, ...]:
    if count == len(clients):
        return clients
    drawn = set(random.Random(seed).sample(clients, count))
    return tuple(client for client in clients if client in drawn)


@dataclass(frozen=True)
class Participation:
    """How many clients take part in a round.

    Attributes:
        fraction: Fraction of the clients that is sampled for each round. Under ``trainer.privacy``
            it is each client's probability, independent of all others.
        min_clients: Minimum number of client updates; with fewer, the server does not use the
            aggregate of the round.
    """

    fraction: float = 1.0
    min_clients: int = 1

    def __post_init__(self) -> None:
        """Check ranges."""
        faults = FaultList()
        if not 0 < self.fraction <= 1:
            faults.append(f"trainer.participation.fraction must lie in (0, 1], got {self.fraction}")
        if self.min_clients < 0:
            faults.append(
                f"trainer.participation.min_clients must be at least 0, got {self.min_clients}"
            )
        faults.raise_any()


@dataclass(frozen=True)
class LoopSettings:
    """The trainer's settings that concern rounds; see `FederatedTrainer`.

    Attributes:
        val_every: Validate after every n-th round; 0 for never.
        limit_train: Maximum number of batches per training pass.
        participation: How many clients take part.
        faults: Client failures to simulate.
        update_limits: How far an update may be from what the client was sent.
        privacy: Differential privacy of the updates; none by default.
        keeps_messages: Whether accepted messages are stored for a resumed round.
        cohort: Maximum number of clients that train together; ``auto`` for what is best.
    """

    val_every: int = 1
    limit_train: int | None = None
    participation: Participation = field(default_factory=Participation)
    faults: FailureTrace | None = None
    update_limits: UpdateLimits = field(default_factory=UpdateLimits)
    privacy: Privacy | None = None
    keeps_messages: bool = False
    cohort: int | Literal["auto"] = 1

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.cohort != "auto" and self.cohort < 1:
            raise ConfigurationError(
                f"trainer.cohort must be auto or at least 1, got {self.cohort}"
            )
        if self.val_every < 0:
            raise ConfigurationError(
                f"trainer.check_val_every_n_rounds must be at least 0, got {self.val_every}"
            )

    def validates(self, round: int) -> bool:
        """Return whether a validation is due after a round."""
        return bool(self.val_every) and (round + 1) % self.val_every == 0

    def participants(self, clients: tuple[str, ...], *, seed: int, round: int) -> tuple[str, ...]:
        """Return the clients that take part in a round.

        Args:
            clients: All clients.
            seed: Base seed of the run.
            round: The round.
        """
        fraction = self.participation.fraction
        if self.privacy is None:
            return sample_clients(clients, fraction, seed=seed, round=round)
        drawn_by = None if self.privacy.secure_noise else seed
        return poisson_clients(clients, fraction, seed=drawn_by, round=round)
