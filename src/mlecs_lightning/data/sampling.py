"""Batches of a training pass, drawn from a seed and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.types import Batch

__all__ = ["SeededLoader", "draw_batches", "sequential_loader", "whole_batch"]


def draw_batches(samples: int, batch_size: int, *, steps: int, seed: int) -> list[list[int]]:
    """Draw the sample indices of every step of a training pass.

    Seeded permutations of all samples follow each other and are cut into batches. Every batch is
    full, because a smaller last one would give the contrastive loss fewer negatives, and every
    sample is drawn once before any is drawn again. If there are fewer samples than ``batch_size``,
    each batch holds all of them.

    Args:
        samples: Number of samples N.
        batch_size: Batch size.
        steps: Number of batches.
        seed: Seed of the pass; equal seeds give equal batches in every process.

    Returns:
        ``steps`` lists of indices.

    Raises:
        ValueError: If there are no samples.
    """
    if samples < 1:
        raise ValueError("cannot draw batches from an empty data set")
    size = min(batch_size, samples)
    rng = np.random.default_rng(seed)
    epochs = -(-steps * size // samples)
    order = np.concatenate([rng.permutation(samples) for _ in range(epochs)] or [np.empty(0, int)])
    return [order[i * size : (i + 1) * size].tolist() for i in range(steps)]


def whole_batch(batch: Any) -> Any:  # noqa: ANN401 - a `DataLoader` types it as a list
    """Return the batch as it is: `SampleTable.__getitems__` already collates."""
    return batch


def sequential_loader(table: SampleTable, batch_size: int) -> DataLoader[Batch]:
    """Return a loader that iterates over the table once, in order."""
    return DataLoader(table, batch_size=batch_size, collate_fn=whole_batch)


class SeededLoader:
    """Training batches of one table, drawn for each pass from a seed.

    The loader has no state: a pass depends on its seed only. So a resumed run sees the same batches
    as an uninterrupted one, and the server knows which public samples a client will use.
    """

    def __init__(
        self,
        table: SampleTable,
        *,
        batch_size: int,
        num_workers: int = 0,
        limit: int | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        """Wrap a table.

        Args:
            table: The samples.
            batch_size: Batch size.
            num_workers: Worker processes of the `DataLoader`.
            limit: Maximum number of batches per training pass.
            shard: Rank and number of the processes that share every batch: this process takes every
                ``size``-th row of it, from row ``rank`` on.

        Raises:
            ValueError: If a batch has fewer samples than there are processes.
        """
        rank, size = shard
        if not 0 <= rank < size:
            raise ValueError(f"shard must be (rank, size) with 0 <= rank < size, got {shard}")
        if size > 1 and min(batch_size, len(table)) < size:
            raise ValueError(
                f"data.init_args.batch_size is {batch_size} and there are {len(table)} samples: "
                f"{size} processes cannot share such a batch, as each needs at least one sample"
            )
        self.table = table
        self.batch_size = batch_size
        self._num_workers = num_workers
        self._limit = limit
        self._rank, self._size = shard

    @property
    def shard(self) -> tuple[int, int]:
        """Rank and number of the processes that share every batch."""
        return self._rank, self._size

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.table)

    def over(self, table: SampleTable) -> SeededLoader:
        """Return a loader of another table in the same batches."""
        return SeededLoader(
            table,
            batch_size=self.batch_size,
            num_workers=self._num_workers,
            limit=self._limit,
            shard=self.shard,
        )

    def take(self, steps: int, *, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yield this process's rows of ``steps`` batches.

        Args:
            steps: Number of batches.
            seed: Seed of the pass; equal seeds give equal batches.
            start: Number of batches to skip at the beginning, for a pass that is resumed.
        """
        batches = [b[self._rank :: self._size] for b in self._draw(steps, seed)[start:]]
        if batches:
            yield from DataLoader(
                self.table,
                batch_sampler=batches,
                collate_fn=whole_batch,
                num_workers=self._num_workers,
            )

    def ids(self, steps: int, *, seed: int) -> tuple[str, ...]:
        """Return the distinct ids that `take` yields in all processes together, in that order."""
        drawn = self._draw(steps, seed)
        return tuple(dict.fromkeys(self.table.ids[i] for batch in drawn for i in batch))

    def _draw(self, steps: int, seed: int) -> list[list[int]]:
        steps = steps if self._limit is None else min(steps, self._limit)
        return draw_batches(len(self.table), self.batch_size, steps=steps, seed=seed)
