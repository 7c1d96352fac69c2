"""Scores that devices measure on their own samples, where both ends want them to be sent.

The server asks at the end of a run, and each device decides by its `allow`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping

import torch

from mlecs_lightning.federated.run import Run
from mlecs_lightning.network.envelope import MALFORMED, Envelope, EnvelopeError
from mlecs_lightning.network.link import Transport
from mlecs_lightning.wire.channel import Channel, MessageLimits, ReceivedMessage
from mlecs_lightning.wire.encoding import ChannelError
from mlecs_lightning.wire.messages import Message, Schema, TensorField

__all__ = ["SCORES", "Views", "ask_scores", "message_of"]

log = logging.getLogger(__name__)

SCORES = "scores"
"""The component, as `allow` and the ledger name it."""

Views = Mapping[str, Mapping[str, float]]
"""Scores by name: ``own`` on the client's domains, ``all`` on all."""

_VIEWS = ("own", "all")
_POLL, _PAUSE, _ABSENT = 0.2, 2.0, 30.0


def message_of(views: Views, names: Iterable[str]) -> Message:
    """Return the named scores as a message; those that are not finite are left out."""
    asked = set(names)
    return Message(
        {
            f"{SCORES}/{view}/{name}": torch.tensor(value, dtype=torch.float64)
            for view in _VIEWS
            for name, value in views[view].items()
            if name in asked and math.isfinite(value)
        }
    )


def ask_scores(
    run: Run, transport: Transport, *, limits: MessageLimits, seconds: float
) -> dict[str, dict[str, dict[str, float]]]:
    """Ask all devices for the scores of their last round; count what they send in the ledger.

    Args:
        run: The run.
        transport: To the devices.
        limits: How large an answer may be.
        seconds: How long to wait for those that are connected.

    Returns:
        By client and view. Who is away, fails, or does not allow it has none; the reason is in the
        client's own log.
    """
    names = run.tester.names(run.data.public("test"))
    schema = Schema(
        {},
        {},
        {f"{SCORES}/{v}/{n}": TensorField((), torch.float64) for v in _VIEWS for n in names},
    )

    def request(client: str) -> bytes:
        header = {"client": client, "last": run.federation.last_round(client), "names": names}
        return Envelope("evaluate", header).to_bytes()

    trained = [c for c in run.federation.clients if run.federation.last_round(c) is not None]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for client, data in _answers(transport, trained, request, seconds=seconds):
        try:
            message, sizes = _read(Envelope.of(data), client, schema, limits)
        except (ChannelError, *MALFORMED) as error:
            log.warning("no scores of client %r: %s", client, error)
            run.folder.note(client, f"scores\n{error}\n\n")
            continue
        run.ledger.add("evaluation", client, sizes)
        found[client] = {view: {} for view in _VIEWS}
        for name, value in message.component(SCORES).items():
            view, _, score = name.partition("/")
            found[client][view][score] = float(value)
    return found


def _read(answer: Envelope, client: str, schema: Schema, limits: MessageLimits) -> ReceivedMessage:
    if answer.header.get("client") != client:
        raise EnvelopeError(f"it says that it is client {answer.header.get('client')!r}")
    if answer.kind != SCORES:
        reasons = [str(each)[:1000] for each in answer.header.get("reasons", [answer.kind])[:50]]
        raise EnvelopeError("\n  ".join(reasons))
    (data,) = answer.parts
    about = int(answer.header["round"])
    return Channel(limits).receive(data, schema, direction="uplink", client=client, round=about)


def _answers(
    transport: Transport,
    clients: Iterable[str],
    request: Callable[[str], bytes],
    *,
    seconds: float,
) -> Iterable[tuple[str, bytes]]:
    """Ask each client until it answers; yield what comes in time."""
    due, under_way = dict.fromkeys(clients, 0.0), dict[str, str]()
    start = time.monotonic()
    while due or under_way:
        passed, online = time.monotonic() - start, transport.online()
        absent = not under_way and not any(client in online for client in due)
        if passed > seconds or (absent and passed > _ABSENT):
            break
        for client, since in list(due.items()):
            if client in online and since <= time.monotonic():
                del due[client]
                under_way[transport.send(client, request(client))] = client
        for ticket, data in transport.receive(_POLL):
            asked = under_way.pop(ticket, None)
            if asked is not None and data is not None:
                yield asked, data
            elif asked is not None:
                due[asked] = time.monotonic() + _PAUSE
    for client in (*due, *under_way.values()):
        log.warning("no scores of client %r: it did not answer", client)
