"""Streaming aggregation of LoRA adapters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mlecs_lightning.aggregation.aggregate import Aggregate
from mlecs_lightning.aggregation.update_sum import UpdateSum
from mlecs_lightning.functional import (
    LoraFactors,
    compress,
    coordinate_median,
    trimmed_mean,
)

__all__ = [
    "AdapterAggregate",
    "AdapterAggregator",
    "Aggregation",
    "GroupedAdapters",
    "first_ranks",
    "fit_rank",
    "over_ranks",
]

Aggregation = Literal[
    "separate", "stack", "svd", "freeze_a", "dimensions", "median", "trimmed_mean"
]

_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, kw_only=True)
class AdapterAggregate(Aggregate):
    """The aggregated adapter of one group of clients.

    ``error`` is the relative Frobenius distance of the aggregated update B A from the exact
    weighted mean of the clients' updates, over all layers together; infinite if that mean is zero
    and the aggregate is not.

    Attributes:
        adapter: The aggregated tensors, under PEFT's names; empty if no client sent any.
    """

    adapter: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class GroupedAdapters(Aggregate):
    """The aggregated adapters of all groups of clients.

    ``error`` is the largest of all groups, ``clients`` their sum.

    Attributes:
        adapters: For each group with an update its aggregated adapter, by the tower that hosts it.
    """

    adapters: Mapping[str, dict[str, Tensor]]

    @classmethod
    def of(cls, groups: Mapping[str, AdapterAggregate]) -> GroupedAdapters:
        """Combine the aggregates of all groups.

        Args:
            groups: By the tower that hosts each, at least one.
        """
        return cls(
            clients=sum(group.clients for group in groups.values()),
            error=max(group.error for group in groups.values()),
            adapters={host: group.adapter for host, group in groups.items() if group.clients},
        )


class AdapterAggregator:
    """Aggregates adapters one at a time, mostly in memory that does not grow with their number.

    The exceptions are ``median`` and ``trimmed_mean``, which sort the clients' values and so keep
    all adapters of a round. They ignore the weights (our choice: a client claims its own weight,
    and a hostile one would claim a large one).

    Each key has its own total weight, so a key that some clients lack is averaged over those that
    have it. The exact sum of the updates B A (`UpdateSum`) is kept as well: it is the aggregate of
    ``stack`` and ``svd``, and the reference for the error of the others except ``freeze_a``, which
    is exact. Adapters are summed in float64, so that the order of the clients has no effect.
    """

    def __init__(
        self, method: Aggregation, *, rank: int, scaling: float, trim: float = 0.1
    ) -> None:
        """Start with no adapters.

        Args:
            method: ``separate`` averages A and B separately; ``stack`` is exact; ``svd`` truncates
                the exact mean; ``freeze_a`` averages B where all clients share A; ``dimensions``
                averages each rank dimension over the clients that have it; ``median`` and
                ``trimmed_mean`` treat A and B separately, coordinate by coordinate.
            rank: Rank of the result (of the hosted SLM's adapter).
            scaling: Scale alpha / r of the result.
            trim: Share of the clients that ``trimmed_mean`` drops at each end, in [0, 0.5).
        """
        self.method, self._rank, self._scaling, self._trim = method, rank, scaling, trim
        self._kept: list[dict[str, Tensor]] = []
        self._sums: dict[str, Tensor] = {}
        self._totals: dict[str, float] = {}
        self._weights = torch.zeros(rank, dtype=torch.float64)  # of each rank dimension
        self._exact: dict[str, UpdateSum] = {}
        self._clients = 0

    def add(self, adapter: Mapping[str, Tensor], *, weight: float, scaling: float) -> None:
        """Add the adapter of one client.

        Args:
            adapter: Tensors under PEFT's names.
            weight: Its weight, positive and finite; only the ratios matter.
            scaling: Scale alpha / r of this client's adapter.

        Raises:
            ValueError: If the weight is not positive and finite.
        """
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"the weight of a client must be positive and finite, got {weight}")
        self._clients += 1
        if self.method in ("median", "trimmed_mean"):
            self._kept.append({key: tensor.float() for key, tensor in adapter.items()})
        for key, tensor in adapter.items():
            self._totals[key] = self._totals.get(key, 0.0) + weight
            if self.method in ("separate", "freeze_a"):
                total = self._sums.setdefault(key, torch.zeros_like(tensor, dtype=torch.float64))
                total.add_(tensor, alpha=weight)
        if self.method == "freeze_a":
            return
        if self.method == "dimensions":
            self._add_ranks(adapter, weight=weight, scaling=scaling)
        for layer in (key.removesuffix(_DOWN) for key in adapter if key.endswith(_DOWN)):
            factors = LoraFactors(adapter[layer + _DOWN], adapter[layer + _UP], scaling)
            if layer not in self._exact:
                aggregate = self.method in ("stack", "svd")
                self._exact[layer] = UpdateSum(torch.float64 if aggregate else torch.float32)
            self._exact[layer].add(factors, weight=weight)

    def _add_ranks(self, adapter: Mapping[str, Tensor], *, weight: float, scaling: float) -> None:
        """Add to the rank dimensions that the client has, in the scale of the result."""
        for key, tensor in adapter.items():
            down = key.endswith(_DOWN)
            rows = tensor.double() if down else tensor.double().T * (scaling / self._scaling)
            total = self._sums.setdefault(key, rows.new_zeros(self._rank, rows.shape[1]))
            total[: len(rows)] += weight * rows
        self._weights[: len(rows)] += weight

    def result(self) -> AdapterAggregate:
        """Return the aggregate of all added adapters."""
        adapter = self._aggregated() if self._clients else {}
        return AdapterAggregate(adapter=adapter, error=self._error(adapter), clients=self._clients)

    def _aggregated(self) -> dict[str, Tensor]:
        match self.method:
            case "separate" | "freeze_a":
                return self._means()
            case "dimensions":
                held = self._weights[self._weights > 0, None]
                means = {k: (s[: len(held)] / held).float() for k, s in self._sums.items()}
                return {k: m if k.endswith(_DOWN) else m.T for k, m in means.items()}
            case "median":
                return coordinate_median(self._kept)
            case "trimmed_mean":
                return trimmed_mean(self._kept, trim=self._trim)
            case _:
                return self._compressed()

    def _means(self) -> dict[str, Tensor]:
        return {k: (s / self._totals[k]).to(torch.float32) for k, s in self._sums.items()}

    def _compressed(self) -> dict[str, Tensor]:
        adapter: dict[str, Tensor] = {}
        for layer, exact in self._exact.items():
            mean = exact.mean(self._totals[layer + _DOWN])
            low = compress(mean, self._rank, scaling=self._scaling)
            adapter[layer + _DOWN], adapter[layer + _UP] = low.down.float(), low.up.float()
        return adapter

    def _error(self, adapter: Mapping[str, Tensor]) -> float:
        """Relative error over all layers: root of the summed squares, layer by layer."""
        missed = size = 0.0
        for layer, exact in self._exact.items():
            mine = LoraFactors(adapter[layer + _DOWN], adapter[layer + _UP], self._scaling)
            own = exact.error(mine, total=self._totals[layer + _DOWN])
            missed, size = missed + own[0], size + own[1]
        if size == 0:
            return math.inf if missed else 0.0
        return math.sqrt(missed / size)


def fit_rank(
    adapter: Mapping[str, Tensor], *, scaling: float, rank: int, target_scaling: float
) -> dict[str, Tensor]:
    """Return the nearest adapter, in the Frobenius norm, of a client's rank and scale.

    Args:
        adapter: The server's adapter, under PEFT's names.
        scaling: Its scale alpha / r.
        rank: The client's rank.
        target_scaling: The client's scale.
    """
    ranks = {t.shape[0] for k, t in adapter.items() if k.endswith(_DOWN)}
    if ranks <= {rank} and scaling == target_scaling:
        return dict(adapter)
    fitted: dict[str, Tensor] = {}
    for layer in (key.removesuffix(_DOWN) for key in adapter if key.endswith(_DOWN)):
        low = compress(
            LoraFactors(adapter[layer + _DOWN], adapter[layer + _UP], scaling),
            rank,
            scaling=target_scaling,
        )
        fitted[layer + _DOWN], fitted[layer + _UP] = low.down, low.up
    return fitted


def first_ranks(
    adapter: Mapping[str, Tensor], *, scaling: float, rank: int, target_scaling: float
) -> dict[str, Tensor]:
    """Return the first rank dimensions of an adapter, in a client's scale.

    Args:
        adapter: The server's adapter, under PEFT's names.
        scaling: Its scale alpha / r.
        rank: The client's rank, at most that of the adapter.
        target_scaling: The client's scale.
    """
    return {
        key: t[:rank] if key.endswith(_DOWN) else t[:, :rank] * (scaling / target_scaling)
        for key, t in adapter.items()
    }


def over_ranks(adapter: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an adapter with its first rank dimensions replaced.

    Args:
        adapter: The adapter, under PEFT's names.
        first: The new dimensions, in the same scale.
    """
    replaced = {key: tensor.clone() for key, tensor in adapter.items()}
    for key, tensor in first.items():
        rows, new = (replaced[key], tensor) if key.endswith(_DOWN) else (replaced[key].T, tensor.T)
        rows[: len(new)] = new
    return replaced
