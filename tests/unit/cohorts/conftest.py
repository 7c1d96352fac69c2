"""Rounds of clients without a server, with any link."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from mlecs_lightning import Digits
from mlecs_lightning.checkpoints.client_store import MemoryStore
from mlecs_lightning.clients import ClientSettings, Federation
from mlecs_lightning.cohorts.registry import Cohorts
from mlecs_lightning.federated.exchange.cohort_link import CohortLink
from mlecs_lightning.federated.exchange.device import Device, Reply
from mlecs_lightning.federated.exchange.link import InProcessLink, Offer
from mlecs_lightning.rounds import Algorithm, RoundContext
from mlecs_lightning.rounds.failures import FailureTrace
from mlecs_lightning.wire import Channel, MessageLimits

NAMES = tuple(f"c{n}" for n in range(8))


class Shop:
    """Federations of eight clients that are alike, built once for each model and reused."""

    def __init__(self, tiny: SimpleNamespace) -> None:
        self._tiny, self._built = tiny, dict[str, tuple[Federation, Digits]]()
        self.federation: Federation
        self.link: InProcessLink | CohortLink

    def run(
        self,
        algorithm: Algorithm,
        clients: Sequence[str] = NAMES[:4],
        *,
        size: int,
        kind: type[Digits] = Digits,
        rounds: int = 1,
        trace: FailureTrace | None = None,
        check_stop: Callable[[], None] = lambda: None,
        clip: float = 0.0,
        sensors: Mapping[str, Sequence[str]] | None = None,
        **model: Any,
    ) -> tuple[list[Reply], dict[str, Any]]:
        """Train some clients from the beginning in cohorts of a size; return replies and states."""
        federation, data = self._federation(algorithm, kind, sensors or {}, model)
        self.federation = federation
        federation.store = MemoryStore()
        for name in federation.clients:
            federation.learner(name).clip = clip
        channel = Channel(MessageLimits())
        device = Device(algorithm, data, federation, channel, None, check_stop, print)
        self.link = InProcessLink(device, trace)
        if size > 1:
            self.link = CohortLink(device, trace, Cohorts(federation, data, size))
        replies: list[Reply] = []
        for number in range(rounds):
            ctx = RoundContext(number, 0, tuple(clients))
            replies += self.link.exchange(ctx, self._offers(algorithm, data, channel, ctx))
        return replies, {c: federation.store.get(c) for c in clients}

    def _federation(
        self,
        algorithm: Algorithm,
        kind: type[Digits],
        sensors: Mapping[str, Sequence[str]],
        model: dict[str, Any],
    ) -> tuple[Federation, Digits]:
        parts = (algorithm.uses_proxy, getattr(algorithm, "aggregation", None))
        key = repr((sensors, model, kind, parts))
        if key not in self._built:
            tiny, edge, data = self._tiny, self._tiny.model(**model), self._tiny.data(kind)
            named = {
                name: ClientSettings(list(sensors.get(name, ["fourier", "profile"])))
                for name in NAMES
            }
            self._built[key] = (
                tiny.build(algorithm, tiny.parties(named, edge=edge), data),
                data,
            )
        federation, data = self._built[key]
        modules = {name: federation.module(name) for name in federation.clients}
        algorithm.prepare(federation.server, modules)
        return federation, data

    def _offers(
        self, algorithm: Algorithm, data: Digits, channel: Channel, ctx: RoundContext
    ) -> Iterator[Offer]:
        server = self.federation.server
        if not algorithm.communicates:
            yield from (Offer(client, None) for client in ctx.participants)
            return
        for client, message in algorithm.broadcast(server, self._tiny.loaders(data), ctx):
            assert message is not None
            schema = algorithm.downlink(self.federation.module(client))
            facts: dict[str, Any] = {"direction": "downlink", "client": client}
            parcel = channel.pack(message, schema, **facts, round=ctx.round, known={})
            yield Offer(client, parcel.data)


@pytest.fixture(scope="session")
def shop(tiny: SimpleNamespace) -> Shop:
    """One shop for all tests."""
    return Shop(tiny)


def off(one: Any, other: Any) -> float:  # noqa: ANN401 - nested states
    """Return the largest difference of two states, whose form must be the same."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((off(one[k], other[k]) for k in one), default=0.0)
    if isinstance(one, list):
        assert len(one) == len(other)
        return max((off(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, Tensor):
        assert one.shape == other.shape
        return float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
    if isinstance(one, float):
        return abs(one - other)
    assert one == other
    return 0.0
