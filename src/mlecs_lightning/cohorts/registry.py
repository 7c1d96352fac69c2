"""Which clients are in a cohort together, how many, and what happens where it is not possible."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol, TypeVar

import torch

from mlecs_lightning.cohorts.cohort import Cohort
from mlecs_lightning.cohorts.stack import NotTogetherError
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.modules import EdgeModule
from mlecs_lightning.rounds.failures import Failure
from mlecs_lightning.rounds.learner import EdgeLearner

__all__ = ["MOST", "Cohorts", "Models", "cohort_size"]

T = TypeVar("T")

MOST = 16
"""Maximum size of a cohort that is chosen here: beyond it, little is gained (docs/results.md)."""
_COPIES = 9
"""A client's weights, gradients, moments, update and kept state, as measured: docs/scale.md."""
_SHARE = 8
"""One of so many parts of the memory is for these; the rest is for models, activations and others.

Of all memory, not of what is free at the moment: a run that is resumed must have the same cohorts.
"""

log = logging.getLogger(__name__)


class Models(Protocol):
    """The models of the clients, one for each architecture."""

    def architecture(self, client: str) -> str:
        """Return a key that the clients of one architecture share."""

    def module(self, client: str) -> EdgeModule:
        """Return the module of a client's architecture."""

    def learner(self, client: str) -> EdgeLearner:
        """Return the learner of a client's architecture."""


class Cohorts:
    """The cohorts of a federation, one for each architecture.

    What cannot be done together is done one by one, and the log says why.
    """

    def __init__(
        self, models: Models, data: FederatedDataModule, size: int | Literal["auto"]
    ) -> None:
        """Set the size.

        Args:
            models: The models of the clients.
            data: Their data, for the size of a batch and the number of workers.
            size: Maximum number of clients in a cohort; ``auto`` for what the memory allows.
        """
        self._models, self._data, self._asked = models, data, size
        self._cohorts: dict[str, Cohort | None] = {}
        self._sizes: dict[str, int] = {}
        self._alone = set[tuple[str, str]]()

    def size(self, client: str) -> int:
        """Return the maximum number of clients in a cohort of a client's architecture."""
        key = self._models.architecture(client)
        if key not in self._sizes:
            asked = self._asked
            module = self._models.module(client)
            self._sizes[key] = cohort_size(module) if asked == "auto" else asked
        return self._sizes[key]

    def window(self, clients: Sequence[str]) -> int:
        """Return how many clients there can be in a cohort of every architecture at a time."""
        for client in clients:
            self.size(client)
        return sum(self._sizes.values())

    def groups(self, clients: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Yield cohorts of clients of one architecture, of about equal size."""
        alike: dict[str, list[str]] = {}
        for client in clients:
            alike.setdefault(self._models.architecture(client), []).append(client)
        for members in alike.values():
            count = -(-len(members) // self.size(members[0]))
            for number in range(count):
                first, end = (len(members) * n // count for n in (number, number + 1))
                yield tuple(members[first:end])

    def run(
        self, clients: Sequence[str], jobs: Sequence[Callable[[], T]], *, work: str = "train"
    ) -> list[T]:
        """Run a job of each client together, or, if that is not possible, one by one.

        Args:
            clients: Clients of one architecture.
            jobs: Their jobs, which load their state into the learner of the architecture.
            work: What they do, for the log. Where it is not possible, other work may be.

        Returns:
            The results of the jobs.
        """
        key, size = self._models.architecture(clients[0]), self.size(clients[0])
        if len(jobs) > size:  # which has become less meanwhile
            cuts = [slice(n, n + size) for n in range(0, len(jobs), size)]
            return [each for cut in cuts for each in self.run(clients[cut], jobs[cut], work=work)]
        crowded = False
        if len(jobs) > 1 and (key, work) not in self._alone:
            try:
                return self._cohort(clients[0]).run(jobs)
            except torch.OutOfMemoryError:
                crowded = True
                self._cohorts.pop(key, None)
            except NotTogetherError as error:
                self._alone.add((key, work))
                log.warning(
                    "trainer.cohort: clients like %r %s alone, one after another: %s",
                    *(clients[0], work, error),
                )
            except Exception as error:  # whose it is shows when each is alone
                log.warning(
                    "trainer.cohort: %s %s one after another in this round: %s",
                    *(", ".join(clients), work),
                    Failure.of(error, kind="error", stage="", round=0, client="").error,
                )
        if crowded:  # outside of the handler, whose traceback holds what filled the memory
            self._sizes[key] = size // 2
            log.warning(
                "trainer.cohort: the memory is too small: clients like %r are %d together from now",
                *(clients[0], self._sizes[key]),
            )
            return self.run(clients, jobs, work=work)
        return [job() for job in jobs]

    def _cohort(self, client: str) -> Cohort:
        """Return the cohort of a client's architecture.

        Raises:
            NotTogetherError: If there can be none.
        """
        key = self._models.architecture(client)
        cohort = self._cohorts.get(key)
        if cohort is None:
            if self._data.num_workers:
                raise NotTogetherError(
                    "data.init_args.num_workers starts processes for every client; with 0 they can "
                    "train together"
                )
            cohort = self._cohorts[key] = Cohort(
                self._models.learner(client), self.size(client), batch_size=self._data.batch_size
            )
        return cohort


def cohort_size(module: EdgeModule) -> int:
    """Return the size of a cohort of clients with a module, by the memory of the device."""
    own = sum(p.numel() * p.element_size() for p in module.trainable_parameters())
    return max(1, min(MOST, _memory(module.device) // _SHARE // max(1, _COPIES * own)))


def _memory(device: torch.device) -> int:
    """Return the memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on every system
        return 2**30
