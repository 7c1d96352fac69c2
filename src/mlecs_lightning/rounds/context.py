"""The frozen facts of one round."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["RoundContext", "derive_seed", "seed_generators"]


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that is a function of the parts, the same in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_generators(seed: int) -> None:
    """Seed Python, NumPy and torch on all devices, as Lightning's `seed_everything` does.

    Apart from it, because this is done for every client: where there is no accelerator,
    `torch.manual_seed` spends nearly all its time on a stack trace for each kind of them.

    Args:
        seed: Of any size; NumPy takes 32 bits of it, and so do the others.
    """
    seed %= 2**32
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the generator that users' code draws from
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


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
