"""The processes of a run: who serves which client, and what they tell each other."""

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

__all__ = ["Ranks", "check_precision", "make_fabric", "processes", "spread"]

T = TypeVar("T")


class Ranks:
    """The ranks of a launched Fabric, as one place to exchange small Python values.

    The values are pickled: they go between processes of one run, which trust each other. What comes
    from a client is decoded by the channel and by nothing else.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    def __init__(self, fabric: Fabric) -> None:
        """Read rank and size of a Fabric that has been launched."""
        self.rank, self.size = fabric.global_rank, fabric.world_size

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order, on every rank; all must call."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first rank run a block before all others do; all must call.

        What is made once and found by all others is then made by the rank that speaks. An error on
        it does not keep the others waiting.
        """
        if self.rank:
            self.gather(None)
        try:
            yield
        finally:
            if not self.rank:
                self.gather(None)

    def merge(self, own: Mapping[str, T]) -> dict[str, T]:
        """Return the union of all ranks' dicts, whose keys do not overlap."""
        return {key: value for part in self.gather(dict(own)) for key, value in part.items()}


def spread(costs: Mapping[str, float], ranks: int) -> dict[str, int]:
    """Assign clients to ranks so that the dearest rank costs little more than the others.

    Longest processing time first: the dearest client goes to the rank with the least so far, at
    most 4/3 of the best makespan (Graham 1969). Fixed for the whole run, so that no client's state
    ever has to move.

    Args:
        costs: Cost of each client, in any unit.
        ranks: Number of processes.

    Returns:
        For each client, in the order of ``costs``, its rank.
    """
    load = [(0.0, rank) for rank in range(ranks)]
    owner: dict[str, int] = {}
    for client in sorted(costs, key=lambda name: (-costs[name], name)):
        total, rank = heapq.heappop(load)
        owner[client] = rank
        heapq.heappush(load, (total + costs[client], rank))
    return {client: owner[client] for client in costs}


def make_fabric(**options: Any) -> Fabric:
    """Return a Fabric for the processes that are asked for, or that torchrun has started.

    Its DDP lets parameters go without a gradient: the readout of the server's view has none where
    nothing is contrasted.

    Args:
        **options: Those of `Fabric`, all of accelerator, devices, num_nodes and strategy.

    Raises:
        ConfigurationError: If the precision is not to be had.
        ValueError: If torchrun has started another number of processes.
    """
    check_precision(options["precision"], options["accelerator"])
    elastic = TorchElasticEnvironment.detect()
    if elastic and _on_cpu(options["accelerator"]) and options["devices"] == "auto":
        # On the CPU Fabric takes auto for one process, however many torchrun has started.
        options["devices"] = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(**options)
    if elastic and processes(fabric) != int(os.environ["WORLD_SIZE"]):
        raise ValueError(
            f"trainer.devices and trainer.num_nodes ask for {processes(fabric)} processes, "
            f"torchrun has started {os.environ['WORLD_SIZE']}"
        )
    if isinstance(fabric.strategy, DDPStrategy) and options["strategy"] in ("auto", "ddp"):
        return Fabric(**{**options, "strategy": "ddp_find_unused_parameters_true"})
    return fabric


def check_precision(precision: object, accelerator: object) -> None:
    """Refuse 16-mixed on a CPU: Lightning would take bf16-mixed for it, and results say otherwise.

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


def processes(fabric: Fabric) -> int:
    """Return the number of processes that a Fabric is for, launched or not."""
    strategy = fabric.strategy
    if isinstance(strategy, DDPStrategy):
        return strategy.num_processes * strategy.num_nodes
    return fabric.world_size
