"""The frozen facts of one round."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

__all__ = ["RoundContext", "derive_seed"]


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that is a function of the parts, the same in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True)
class RoundContext:
    """What a round depends on, and nothing that changes during it.

    Attributes:
        round: Number of the round, from 0.
        seed: Base seed of the run.
        participants: The clients of this round, in the federation's order.
    """

    round: int
    seed: int
    participants: tuple[str, ...]

    def seed_for(self, party: str, stage: str) -> int:
        """Return the seed of one party's stage in this round.

        Nothing counts up between rounds, so a resumed run and an unbroken one draw the same
        numbers, and so do runs on any number of processes.
        """
        return derive_seed(self.seed, self.round, party, stage)
