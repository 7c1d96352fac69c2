"""The link between the server and its devices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from mlecs_lightning.federated.exchange.device import Device, Reply
from mlecs_lightning.rounds.context import RoundContext
from mlecs_lightning.rounds.failures import FailureTrace, Fate

__all__ = ["InProcessLink", "Link", "Offer"]


class Offer(NamedTuple):
    """What the server sends a client at the beginning of its round.

    Attributes:
        client: The client.
        data: The broadcast in bytes; ``None`` if the algorithm sends nothing, or the device is
            still at work on an earlier offer, see `Reply.expected`.
    """

    client: str
    data: bytes | None


class Link(Protocol):
    """Carries offers to devices, and their replies back.

    Attributes:
        waiting: Number of replies that are there and not asked for yet. What their clients have
            trained is kept with the reply, so a run that stops before would train them again.
    """

    waiting: int

    def exchange(self, ctx: RoundContext, offers: Iterable[Offer]) -> Iterator[Reply]:
        """Yield the reply to each offer, in the order of the offers.

        Args:
            ctx: The round.
            offers: An iterator that makes each offer when it is asked for it.
        """


class InProcessLink:
    """The simulation: the devices live in this process, and train one after another."""

    def __init__(self, device: Device, trace: FailureTrace | None = None) -> None:
        """Set the device.

        Args:
            device: Trains the clients.
            trace: Simulated failures.
        """
        self._device, self._trace = device, trace
        self.waiting = 0

    def exchange(self, ctx: RoundContext, offers: Iterable[Offer]) -> Iterator[Reply]:
        """See `Link`."""
        for client, data in offers:
            received = self._device.read(ctx, client, data)
            del data  # as large as the adapter, and not needed in training
            fate = self._trace.fate(ctx.round, client) if self._trace else Fate()
            yield self._device.work(ctx, client, received, fate)
