"""Client-level differential privacy: its settings, and which clients take part under it."""

from __future__ import annotations

import math
import random
import secrets
from dataclasses import dataclass
from typing import Literal

from mlecs_lightning.errors import FaultList
from mlecs_lightning.rounds.context import derive_seed

__all__ = ["Privacy", "poisson_clients"]


@dataclass(frozen=True)
class Privacy:
    """Client-level differential privacy of the aggregated updates (DP-FedAvg, arXiv 1710.06963).

    What is and what is not protected: docs/privacy.md.

    Attributes:
        clip: Maximum Euclidean norm C of a client's update, the change of its whole adapter.
        noise_multiplier: Standard deviation of the noise on the sum of the updates, as a multiple
            of ``clip``.
        delta: The delta of the guarantee; below 1 / number of clients.
        where: Who adds the noise. The ``server`` adds it to the sum, and has to be trusted with the
            clipped updates. Each ``device`` adds its share, noise_multiplier * clip /
            sqrt(expected participants), to its own update.
        secure_noise: Whether noise and participants come from the operating system's entropy, as
            they must wherever the guarantee is meant for somebody. Otherwise they are functions of
            the seed, for research that can be repeated: who knows the seed can subtract the noise.
    """

    clip: float
    noise_multiplier: float
    delta: float
    where: Literal["server", "device"] = "server"
    secure_noise: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        faults = FaultList()
        for name in ("clip", "noise_multiplier"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                faults.append(f"trainer.privacy.{name} must be positive and finite, got {value}")
        if not 0 < self.delta < 1:
            faults.append(f"trainer.privacy.delta must lie in (0, 1), got {self.delta}")
        faults.raise_any()


def poisson_clients(
    clients: tuple[str, ...], rate: float, *, seed: int | None, round: int
) -> tuple[str, ...]:
    """Return the participants of a round, each client drawn independently of all others.

    Args:
        clients: All clients.
        rate: Probability of each.
        seed: Base seed of the run, of which the draw is then a function; ``None`` draws from the
            operating system's entropy.
        round: The round.

    Returns:
        The drawn clients, in their old order; there may be none.
    """
    source: random.Random = secrets.SystemRandom()
    if seed is not None:
        source = random.Random(derive_seed(seed, round, "poisson participants"))
    return tuple(client for client in clients if source.random() < rate)
