"""Who has which modality: drawn for each client, and for each sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mlecs_lightning.errors import FaultList

__all__ = ["draw_client_modalities", "draw_sample_mask"]


def _draw(rng: np.random.Generator, rows: int, columns: int, rate: float) -> np.ndarray:
    """Draw (rows, columns) bool with probability ``rate``; every row keeps at least one True.

    A row that lost everything gets one column back, uniformly drawn. Our choice: redrawing whole
    rows would shift the rate of the others, dropping the row would lose a client or a sample.
    """
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"a modality rate lies in (0, 1], got {rate}")
    keep = rng.random((rows, columns)) < rate
    rescue = rng.integers(0, columns, rows)
    empty = ~keep.any(axis=1)
    keep[empty, rescue[empty]] = True
    return keep


def draw_client_modalities(
    modalities: Sequence[str], count: int, *, rate: float, seed: int
) -> dict[str, tuple[str, ...]]:
    """Draw the modalities of ``count`` clients, each with probability ``rate``.

    Args:
        modalities: All modalities of the data set.
        count: Number of clients, named ``client_00``, ``client_01``, ...
        rate: The "modality existing rate" of the ML-ECS reference configuration (0.7 there).
        seed: Seed of the draw.

    Returns:
        For each client its modalities, at least one, in the data set's order.

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
        f"client_{j:0{width}d}": tuple(m for m, k in zip(modalities, row, strict=True) if k)
        for j, row in enumerate(keep)
    }


def draw_sample_mask(samples: int, modalities: int, *, rate: float, seed: int) -> Tensor:
    """Draw which of its client's modalities each sample has.

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
