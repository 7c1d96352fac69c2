"""Streaming merge of the modules that devices trained (ECLM)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mlecs_lightning.aggregation import Aggregate
from mlecs_lightning.wire.messages import Scalar

__all__ = ["DeviceReport", "MergeWeights", "MergedModules", "ModuleMerger", "weights_of"]

MergeWeights = Literal["importance_samples", "importance", "samples"]


def weights_of(kind: MergeWeights, gates: Tensor, samples: Scalar) -> Tensor:
    """Return the weight (L, K) of a device in the mean of each module.

    Args:
        kind: What weighs: its importance of the module, its number of samples, or their product.
        gates: (L, K) mean gates on its data: the importance.
        samples: Its number of samples.

    Example:
        >>> weights_of("importance_samples", torch.tensor([[0.25, 0.75]]), 4).tolist()
        [[1.0, 3.0]]
    """
    importance = torch.ones_like(gates) if kind == "samples" else gates
    return importance if kind == "importance" else importance * float(samples)  # type: ignore[arg-type]


class DeviceReport(NamedTuple):
    """What a device reported of itself in a round.

    Attributes:
        gates: (L, K) mean gates on its data.
        trained: (L, K) bool, the modules that it trained.
        budget: Its budget as a multiple of the configured one.
        drifted: Whether its data have drifted.
    """

    gates: Tensor
    trained: Tensor
    budget: float
    drifted: bool


@dataclass(frozen=True, kw_only=True)
class MergedModules(Aggregate):
    """The modules that devices trained in a round, merged, and what the devices reported.

    Attributes:
        index: (n,) the numbers of the modules that any device trained.
        rows: (n, size) their merged adapters.
        contributors: (N,) int64, how many devices trained each of the N modules.
        reports: By device.
    """

    index: Tensor
    rows: Tensor
    contributors: Tensor
    reports: Mapping[str, DeviceReport]


class ModuleMerger:
    """Averages each module over the devices that trained it, one device at a time.

    Memory does not grow with the number of devices. Each module has its own total weight. A
    device's weight update is linear in the adapters that it sends (the trunk is common to all), so
    the mean of these adapters gives exactly the mean update. Sums are in float64, so that the order
    of the devices has no effect.
    """

    def __init__(self, modules: int, size: int) -> None:
        """Start with no devices.

        Args:
            modules: Number N of modules of the cloud's model.
            size: Number of values of a module's own adapter.
        """
        self._sums = torch.zeros(modules, size, dtype=torch.float64)
        self._weights = torch.zeros(modules, dtype=torch.float64)
        self._contributors = torch.zeros(modules, dtype=torch.int64)

    def add(self, index: Tensor, rows: Tensor, weights: Tensor, *, allowed: Tensor) -> Tensor:
        """Add the modules of one device.

        Args:
            index: (n,) the numbers of the modules.
            rows: (n, size) their adapters.
            weights: (N,) the weight of each module; modules of weight zero do not count.
            allowed: (N,) bool, the modules that the device was assigned. Rows of others are
                dropped; so are all rows if their number differs from that of the indices.

        Returns:
            (N,) bool, the modules that the device trained.
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

    def result(self, reports: Mapping[str, DeviceReport]) -> MergedModules:
        """Return the mean of each module over the devices that trained it.

        Args:
            reports: What each device that was added reported.
        """
        index = (self._weights > 0).nonzero().flatten()
        means = self._sums[index] / self._weights[index, None]
        return MergedModules(
            clients=len(reports),
            index=index,
            rows=means.float(),
            contributors=self._contributors,
            reports=reports,
        )
