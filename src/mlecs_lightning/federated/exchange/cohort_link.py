"""The simulation with clients that train together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Literal

import torch

from mlecs_lightning.cohorts.cohort import Cohort
from mlecs_lightning.cohorts.memory import cohort_size
from mlecs_lightning.cohorts.stack import NotTogetherError
from mlecs_lightning.federated.exchange.device import Device, Reply, Trained
from mlecs_lightning.federated.exchange.link import Offer
from mlecs_lightning.rounds.context import RoundContext
from mlecs_lightning.rounds.failures import Failure, FailureTrace, Fate
from mlecs_lightning.wire.messages import Message

__all__ = ["CohortLink"]

log = logging.getLogger(__name__)


class CohortLink:
    """The devices live in this process, and those of one architecture train in cohorts.

    Offers are taken in windows of ``size`` clients for each architecture; the clients of a window
    form the cohorts. A window depends on the participants alone, and a run stops between windows
    only, so that a resumed round has the same cohorts.
    """

    def __init__(
        self, device: Device, trace: FailureTrace | None, *, size: int | Literal["auto"]
    ) -> None:
        """Set the device.

        Args:
            device: Trains the clients.
            trace: Simulated failures.
            size: Maximum number of clients in a cohort; ``auto`` for what the memory allows.
        """
        self._device, self._trace, self._asked = device, trace, size
        self.waiting = 0
        self._cohorts: dict[str, Cohort | None] = {}
        self._sizes: dict[str, int] = {}

    def exchange(self, ctx: RoundContext, offers: Iterable[Offer]) -> Iterator[Reply]:
        """See `Link`."""
        federation, offers = self._device.federation, iter(offers)
        for client in federation.own:
            self._size(client)
        window = sum(self._sizes.values())
        while True:
            received: dict[str, Message | None] = {}
            for client, data in islice(offers, window):
                received[client] = self._device.read(ctx, client, data)
                del data  # as large as the adapter, and not needed in training
            if not received:
                return
            trained = dict[str, Trained]()
            for group in self._groups(tuple(received)):
                trained |= self._train(ctx, group, received)
            self.waiting = len(trained)
            for client in received:
                self.waiting -= 1
                yield self._device.keep(ctx, trained.pop(client))

    def _size(self, client: str) -> int:
        """Return the maximum number of clients in a cohort of a client's architecture."""
        federation = self._device.federation
        key = federation.architecture(client)
        if key not in self._sizes:
            asked = self._asked
            module = federation.module(client)
            self._sizes[key] = cohort_size(module) if asked == "auto" else asked
        return self._sizes[key]

    def _groups(self, clients: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Yield cohorts of clients of one architecture, of about equal size."""
        alike: dict[str, list[str]] = {}
        for client in clients:
            alike.setdefault(self._device.federation.architecture(client), []).append(client)
        for members in alike.values():
            count = -(-len(members) // self._size(members[0]))
            for number in range(count):
                first, end = (len(members) * n // count for n in (number, number + 1))
                yield tuple(members[first:end])

    def _train(
        self, ctx: RoundContext, clients: Sequence[str], received: dict[str, Message | None]
    ) -> dict[str, Trained]:
        """Train some clients together, or, if that is not possible, one by one."""
        jobs = [partial(self._alone, ctx, client, received[client]) for client in clients]
        cohort = self._cohort(clients)
        if cohort is not None and len(jobs) > 1:
            try:
                return dict(zip(clients, cohort.run(jobs), strict=True))
            except (NotTogetherError, torch.OutOfMemoryError) as error:
                self._refuse(clients, error)
            except Exception as error:  # whose it is shows when each trains alone
                log.warning(
                    "trainer.cohort: %s train one after another in this round: %s",
                    ", ".join(clients),
                    Failure.of(error, kind="error", stage="", round=0, client="").error,
                )
        return {client: job() for client, job in zip(clients, jobs, strict=True)}

    def _alone(self, ctx: RoundContext, client: str, received: Message | None) -> Trained:
        fate = self._trace.fate(ctx.round, client) if self._trace else Fate()
        return self._device.train(ctx, client, received, fate)

    def _cohort(self, clients: Sequence[str]) -> Cohort | None:
        """Return the cohort of an architecture; ``None`` if its clients train alone."""
        key = self._device.federation.architecture(clients[0])
        if key not in self._cohorts:
            self._cohorts[key] = None
            learner = self._device.federation.learner(clients[0])
            size = self._size(clients[0])
            if size > 1:
                try:
                    if self._device.data.num_workers:
                        raise NotTogetherError(
                            "data.init_args.num_workers starts processes for every client; with 0 "
                            "they can train together"
                        )
                    self._cohorts[key] = Cohort(learner, size)
                except NotTogetherError as error:
                    self._refuse(clients, error)
        return self._cohorts[key]

    def _refuse(self, clients: Sequence[str], error: Exception) -> None:
        """Train the clients of an architecture alone from now on, and say why."""
        why = str(error) if isinstance(error, NotTogetherError) else "the memory is too small"
        self._cohorts[self._device.federation.architecture(clients[0])] = None
        log.warning(
            "trainer.cohort: clients like %r train alone, one after another: %s", clients[0], why
        )
