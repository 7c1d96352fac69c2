"""The rows of several clients in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch

from mlecs_lightning.types import Batch

__all__ = ["joined", "part"]


def joined(batches: Sequence[Batch]) -> Batch:
    """Return the rows of all batches, one batch after another."""
    first = batches[0]
    return Batch(
        tuple(chain.from_iterable(batch.ids for batch in batches)),
        first.modalities,
        {name: torch.cat([batch.inputs[name] for batch in batches]) for name in first.inputs},
        torch.cat([batch.present for batch in batches]),
        tuple(chain.from_iterable(batch.instructions for batch in batches)),
        tuple(chain.from_iterable(batch.targets for batch in batches)),
    )


def part(batch: Batch, number: int, rows: int) -> Batch:
    """Return the rows of one client."""
    own = slice(number * rows, (number + 1) * rows)
    return Batch(
        batch.ids[own],
        batch.modalities,
        {name: each[own] for name, each in batch.inputs.items()},
        batch.present[own],
        batch.instructions[own],
        batch.targets[own],
    )
