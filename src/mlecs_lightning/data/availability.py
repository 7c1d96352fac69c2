"""Random availability of modalities, by client and by sample."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mlecs_lightning.errors import FaultList
from mlecs_lightning.types import Batch

__all__ = ["draw_client_modalities", "draw_sample_mask", "without_some_modalities"]


def _draw(rng: np.random.Generator, there: np.ndarray, rate: float) -> np.ndarray:
    """Keep each True of a (rows, columns) bool mask with probability ``rate``, one of a row always.

    A row that lost everything gets one column back, drawn uniformly. Our choice: redrawing whole
    rows would shift the rate of the others, and dropping the row would lose a client or a sample.
    """
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"a modality rate must lie in (0, 1], got {rate}")
    rows, columns = there.shape
    keep: np.ndarray = (rng.random((rows, columns)) < rate) & there
    # Two draws, so that rows with all columns are drawn as if there were no others.
    of_all, held = rng.integers(0, columns, rows), there.sum(axis=1)
    of_some = (rng.random(rows) * held).astype(int)
    nth = np.where(held == columns, of_all, of_some)
    is_nth = there & (there.cumsum(axis=1) == nth[:, None] + 1)
    lost = ~keep.any(axis=1)
    keep[lost] = is_nth[lost]
    return keep


def draw_client_modalities(
    modalities: Sequence[str], count: int, *, rate: float, seed: int
) -> dict[str, tuple[str, ...]]:
    """Draw the modalities of ``count`` clients: a client has each one with probability ``rate``.

    Args:
        modalities: All modalities of the data set.
        count: Number of clients, named ``client_00``, ``client_01``, ...
        rate: The "modality existing rate" of the ML-ECS reference configuration (0.7 there).
        seed: Seed of the draw.

    Returns:
        The modalities of each client: at least one, in the order of the data set.

    Raises:
        ValueError: If ``count`` is not positive or ``rate`` is outside (0, 1].
    """
    faults = FaultList()
    if count < 1:
        faults.append(f"clients.count must be at least 1, got {count}")
    if not 0.0 < rate <= 1.0:
        faults.append(f"clients.modality_rate must lie in (0, 1], got {rate}")
    faults.raise_any()
    every = np.ones((count, len(modalities)), dtype=bool)
    keep = _draw(np.random.default_rng(seed), every, rate)
    width = max(2, len(str(count - 1)))
    return {
        f"client_{j:0{width}d}": tuple(itertools.compress(modalities, row))
        for j, row in enumerate(keep)
    }


def draw_sample_mask(present: Tensor, *, rate: float, seed: int) -> Tensor:
    """Draw for each sample which of its modalities it keeps.

    Args:
        present: (N, K) bool, which of its client's modalities a sample has.
        rate: Probability in (0, 1] that a sample keeps a modality.
        seed: Seed of the draw.

    Returns:
        (N, K) bool, within ``present``; a sample that has any modality keeps at least one.

    Raises:
        ValueError: If ``rate`` is outside (0, 1].
    """
    return torch.from_numpy(_draw(np.random.default_rng(seed), present.numpy(), rate))


def without_some_modalities(batch: Batch, rate: float) -> Batch:
    """Return a batch in which each sample lacks each modality with a probability; one is left."""
    draw = torch.rand(batch.present.shape, device=batch.present.device)
    draw = draw.masked_fill(~batch.present, -1.0)
    keep = (draw >= rate) | (draw == draw.amax(dim=1, keepdim=True))
    return batch._replace(present=batch.present & keep)
