"""The processes (ranks) of a run: which clients each serves, and how they communicate."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy

from mlecs_lightning.errors import ConfigurationError

__all__ = ["Ranks", "assign_clients", "check_precision", "make_fabric", "process_count"]

T = TypeVar("T")


class Ranks:
    """Exchange of small Python values between the ranks of a launched Fabric.

    Values are pickled, since the processes of one run trust each other. Client messages are only
    ever decoded by the channel.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    def __init__(self, fabric: Fabric) -> None:
        """Read rank and world size of a launched Fabric."""
        self.rank, self.size = fabric.global_rank, fabric.world_size

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in rank order; every rank must call this."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let rank 0 run a block before the others; every rank must call this.

        Used for files that one rank creates and the others find. An error on rank 0 does not keep
        the others waiting.
        """
        if self.rank:
            self.gather(None)
        try:
            yield
        finally:
            if not self.rank:
                self.gather(None)

    def merge(self, own: Mapping[str, T]) -> dict[str, T]:
        """Return the union of the dicts of all ranks; their keys must be disjoint."""
        return {key: value for part in self.gather(dict(own)) for key, value in part.items()}


def assign_clients(costs: Mapping[str, float], ranks: int) -> dict[str, int]:
    """Assign clients to ranks so that the ranks have about equal cost.

    Longest processing time first: the most expensive client goes to the rank with the lowest cost
    so far; the makespan is at most 4/3 of the optimum (Graham 1969). The assignment is fixed for
    the whole run, so no client's state has to move.

    Args:
        costs: Cost of each client, in any unit.
        ranks: Number of processes.

    Returns:
        The rank of each client, in the order of ``costs``.
    """
    load = [(0.0, rank) for rank in range(ranks)]
    owner: dict[str, int] = {}
    for client in sorted(costs, key=lambda name: (-costs[name], name)):
        total, rank = heapq.heappop(load)
        owner[client] = rank
        heapq.heappush(load, (total + costs[client], rank))
    return {client: owner[client] for client in costs}


def make_fabric(**options: Any) -> Fabric:
    """Return a Fabric for the requested processes, or for those that torchrun has started.

    Its DDP allows parameters without a gradient, such as the readout of the server's view in steps
    without a contrastive loss.

    Args:
        **options: Options of `Fabric`, including accelerator, devices, num_nodes and strategy.

    Raises:
        ConfigurationError: If the precision is not available.
        ValueError: If torchrun has started a different number of processes.
    """
    check_precision(options["precision"], options["accelerator"])
    elastic = TorchElasticEnvironment.detect()
    if elastic and _on_cpu(options["accelerator"]) and options["devices"] == "auto":
        # On the CPU, Fabric takes auto as one process, even under torchrun.
        options["devices"] = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(**options)
    if elastic and process_count(fabric) != int(os.environ["WORLD_SIZE"]):
        raise ValueError(
            f"trainer.devices and trainer.num_nodes ask for {process_count(fabric)} processes, "
            f"torchrun has started {os.environ['WORLD_SIZE']}"
        )
    if isinstance(fabric.strategy, DDPStrategy) and options["strategy"] in ("auto", "ddp"):
        return Fabric(**{**options, "strategy": "ddp_find_unused_parameters_true"})
    return fabric


def check_precision(precision: object, accelerator: object) -> None:
    """Refuse 16-mixed on a CPU, where Lightning would silently use bf16-mixed.

    Raises:
        ConfigurationError: If ``precision`` is 16-mixed and the run is on a CPU.
    """
    if str(precision) in ("16", "16-mixed") and _on_cpu(accelerator):
        raise ConfigurationError(
            f"trainer.precision is {precision}, which needs a GPU, and this run is on a CPU; "
            "use bf16-mixed or 32-true"
        )


def _on_cpu(accelerator: object) -> bool:
    return accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())


def process_count(fabric: Fabric) -> int:
    """Return the number of processes of a Fabric, launched or not."""
    strategy = fabric.strategy
    if isinstance(strategy, DDPStrategy):
        return strategy.num_processes * strategy.num_nodes
    return fabric.world_size
