"""Which samples a pass sees, as a function of its seed and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.types import Batch

__all__ = ["SeededLoader", "draw_batches", "sequential_loader", "whole_batch"]


def draw_batches(samples: int, batch_size: int, *, steps: int, seed: int) -> list[list[int]]:
    """Draw the sample indices of every step of a pass.

    One seeded permutation of all samples after another, cut into batches: every batch is full
    (a last, smaller one would give the contrastive loss fewer negatives), and no sample comes a
    second time before all others came once. A data set smaller than a batch gives batches of its
    own size.

    Args:
        samples: Number of samples N.
        batch_size: Samples of a batch.
        steps: Number of batches.
        seed: Seed of the pass; equal seeds give equal batches, in any process.

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
    """Collate nothing: `SampleTable.__getitems__` already hands out whole batches."""
    return batch


def sequential_loader(table: SampleTable, batch_size: int) -> DataLoader[Batch]:
    """Return a loader that goes through the table once, in order."""
    return DataLoader(table, batch_size=batch_size, collate_fn=whole_batch)


class SeededLoader:
    """The training data of one party, from which seeded passes are taken.

    Holds no position: a pass is a function of its seed, so a resumed run sees what an unbroken one
    would have seen, and the server knows the public ids a client will use without asking.
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
            batch_size: Samples of a batch.
            num_workers: Worker processes of the `DataLoader`.
            limit: Most batches of a pass, whatever is asked for.
            shard: Rank and number of the processes that share every batch: this one takes row
                ``rank`` of it and every ``size``-th row from there on.

        Raises:
            ValueError: If a batch has fewer samples than there are processes.
        """
        rank, size = shard
        if not 0 <= rank < size:
            raise ValueError(f"shard must be (rank, size) with 0 <= rank < size, got {shard}")
        if size > 1 and min(batch_size, len(table)) < size:
            raise ValueError(
                f"data.init_args.batch_size is {batch_size} and there are {len(table)} samples: "
                f"{size} processes cannot share such a batch, each needs at least one sample of it"
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
        """Yield ``steps`` batches, the same ones for the same seed: this process's rows of them.

        Args:
            steps: Number of batches.
            seed: Seed of the pass.
            start: Leave out so many at the beginning, which a resumed pass has seen.
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
        """Return the distinct ids that `take` yields in all processes, in order of first use."""
        drawn = self._draw(steps, seed)
        return tuple(dict.fromkeys(self.table.ids[i] for batch in drawn for i in batch))

    def _draw(self, steps: int, seed: int) -> list[list[int]]:
        steps = steps if self._limit is None else min(steps, self._limit)
        return draw_batches(len(self.table), self.batch_size, steps=steps, seed=seed)
