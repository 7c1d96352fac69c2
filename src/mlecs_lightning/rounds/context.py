"""The fixed facts of one round, and the seeds derived from them."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["RoundContext", "derive_seed", "seed_generators"]


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed as a function of the parts, the same in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_generators(seed: int) -> None:
    """Seed Python, NumPy and torch on all devices, as Lightning's `seed_everything` does.

    A faster version, because it is called for every client: without an accelerator
    `torch.manual_seed` spends nearly all its time on stack traces, one per device type.

    Args:
        seed: Of any size; its lowest 32 bits are used, since NumPy takes no more.
    """
    seed %= 2**32
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - users' code draws from it
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@dataclass(frozen=True)
class RoundContext:
    """What a round depends on; nothing in it changes during the round.

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

        No counter is kept between rounds, so a resumed run draws the same numbers as an
        uninterrupted one, on any number of processes.
        """
        return derive_seed(self.seed, self.round, party, stage)
