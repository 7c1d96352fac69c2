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


def _draw(rng: np.random.Generator, rows: int, columns: int, rate: float) -> np.ndarray:
    """Draw a (rows, columns) bool mask with probability ``rate``; every row has at least one True.

    A row that lost everything gets one column back, drawn uniformly. Our choice: redrawing whole
    rows would shift the rate of the others, and dropping the row would lose a client or a sample.
    """
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"a modality rate must lie in (0, 1], got {rate}")
    keep = rng.random((rows, columns)) < rate
    rescue = rng.integers(0, columns, rows)
    empty = ~keep.any(axis=1)
    keep[empty, rescue[empty]] = True
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
    keep = _draw(np.random.default_rng(seed), count, len(modalities), rate)
    width = max(2, len(str(count - 1)))
    return {
        f"client_{j:0{width}d}": tuple(itertools.compress(modalities, row))
        for j, row in enumerate(keep)
    }


def draw_sample_mask(samples: int, modalities: int, *, rate: float, seed: int) -> Tensor:
    """Draw for each sample which of its client's modalities it has.

    Args:
        samples: Number of samples N.
        modalities: Number of modalities K of the client.
        rate: Probability in (0, 1] that a sample has a modality.
        seed: Seed of the draw.

    Returns:
        (N, K) bool, at least one True in every row.

    Raises:
        ValueError: If ``rate`` is outside (0, 1].
    """
    return torch.from_numpy(_draw(np.random.default_rng(seed), samples, modalities, rate))


def without_some_modalities(batch: Batch, rate: float) -> Batch:
    """Return a batch in which each sample lacks each modality with a probability; one is left."""
    draw = torch.rand(batch.present.shape, device=batch.present.device)
    draw = draw.masked_fill(~batch.present, -1.0)
    keep = (draw >= rate) | (draw == draw.amax(dim=1, keepdim=True))
    return batch._replace(present=batch.present & keep)
