"""Streaming merge of what devices learned, module by module (ECLM)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ModuleMerger"]


class ModuleMerger:
    """Adds the modules of one device at a time; memory does not grow with their number.

    Each module has its own total of weights: the result is the weighted mean over the devices that
    trained it. A device's adapter is linear in what it sends (the trunk is common to all), so the
    mean of what is sent is the mean of the weight updates, exactly. Sums are in float64, so that
    the order of the devices does not show.
    """

    def __init__(self, modules: int, size: int) -> None:
        """Start with nothing.

        Args:
            modules: Number of modules N of the cloud's model.
            size: Numbers of a module's own adapter.
        """
        self._sums = torch.zeros(modules, size, dtype=torch.float64)
        self._weights = torch.zeros(modules, dtype=torch.float64)
        self._contributors = torch.zeros(modules, dtype=torch.int64)

    def add(self, index: Tensor, rows: Tensor, weights: Tensor, *, allowed: Tensor) -> Tensor:
        """Add the modules of one device.

        Args:
            index: (n,) their numbers.
            rows: (n, size) their adapters.
            weights: (N,) how much each module counts; those of weight zero do not.
            allowed: (N,) bool, the modules that the device was given. Rows of others are dropped,
                and all rows if there are more or fewer than numbers.

        Returns:
            (N,) bool, the modules that it trained.
        """
        trained = torch.zeros_like(allowed)
        if len(rows) != len(index):
            return trained
        known = (index >= 0) & (index < len(allowed))
        index, rows = index[known], rows[known]
        index, rows = index[allowed[index]], rows[allowed[index]]
        trained[index] = True
        weights = weights.double()
        self._sums[index] += rows.double() * weights[index, None]
        self._weights[index] += weights[index]
        self._contributors[index] += weights[index] > 0
        return trained

    @property
    def contributors(self) -> Tensor:
        """Number of devices that trained each module, (N,) int64."""
        return self._contributors

    def result(self) -> tuple[Tensor, Tensor]:
        """Return the numbers of the modules that anybody trained, and their means (n, size)."""
        index = (self._weights > 0).nonzero().flatten()
        means = self._sums[index] / self._weights[index, None]
        return index, means.float()
