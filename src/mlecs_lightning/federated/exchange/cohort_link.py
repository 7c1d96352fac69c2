"""The simulation with clients that train together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice

from mlecs_lightning.cohorts.registry import Cohorts
from mlecs_lightning.federated.exchange.device import Device, Reply, Trained
from mlecs_lightning.federated.exchange.link import Offer
from mlecs_lightning.rounds.context import RoundContext
from mlecs_lightning.rounds.failures import FailureTrace, Fate
from mlecs_lightning.wire.messages import Message

__all__ = ["CohortLink"]


class CohortLink:
    """The devices live in this process, and those of one architecture train in cohorts.

    Offers are taken in windows of as many clients as all cohorts together can have; the clients of
    a window form the cohorts. A window depends on the participants alone, and a run stops between
    windows only, so that a resumed round has the same cohorts.
    """

    def __init__(self, device: Device, trace: FailureTrace | None, cohorts: Cohorts) -> None:
        """Set the device.

        Args:
            device: Trains the clients.
            trace: Simulated failures.
            cohorts: Says who trains together.
        """
        self._device, self._trace, self._cohorts = device, trace, cohorts
        self.waiting = 0

    def exchange(self, ctx: RoundContext, offers: Iterable[Offer]) -> Iterator[Reply]:
        """See `Link`."""
        offers, window = iter(offers), self._cohorts.window(self._device.federation.own)
        while True:
            received: dict[str, Message | None] = {}
            for client, data in islice(offers, window):
                received[client] = self._device.read(ctx, client, data)
                del data  # as large as the adapter, and not needed in training
            if not received:
                return
            trained = dict[str, Trained]()
            for group in self._cohorts.groups(tuple(received)):
                trained |= self._train(ctx, group, received)
            self.waiting = len(trained)
            for client in received:
                self.waiting -= 1
                yield self._device.keep(ctx, trained.pop(client))

    def _train(
        self, ctx: RoundContext, clients: Sequence[str], received: dict[str, Message | None]
    ) -> dict[str, Trained]:
        jobs = [partial(self._alone, ctx, client, received[client]) for client in clients]
        return dict(zip(clients, self._cohorts.run(clients, jobs), strict=True))

    def _alone(self, ctx: RoundContext, client: str, received: Message | None) -> Trained:
        fate = self._trace.fate(ctx.round, client) if self._trace else Fate()
        return self._device.train(ctx, client, received, fate)
