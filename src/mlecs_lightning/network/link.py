"""The server's end of the network: offers go out at once, replies come in any order."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from mlecs_lightning.federated.exchange.device import Reply
from mlecs_lightning.federated.exchange.link import Offer
from mlecs_lightning.federated.run import Run
from mlecs_lightning.network.agreement import Agreement
from mlecs_lightning.network.envelope import MALFORMED, Envelope, EnvelopeError
from mlecs_lightning.network.provision import provision
from mlecs_lightning.rounds.context import RoundContext
from mlecs_lightning.rounds.failures import Failure, FailureKind

__all__ = ["Arrival", "Late", "NetworkLink", "Transport"]

Late = Literal["drop", "next"]

log = logging.getLogger(__name__)

_PATIENCE = (1.0, 2.0, 5.0, 10.0)
"""Seconds before a request is sent again, after each failure of the connection."""
_POLL = 0.2
_SPOOL = "offers-"


class Arrival(NamedTuple):
    """What has come back for a request.

    Attributes:
        ticket: The request.
        data: The answer; ``None`` if the connection or the device failed.
    """

    ticket: str
    data: bytes | None


class Transport(Protocol):
    """Carries bytes between the server and devices that have proved who they are."""

    def online(self) -> Collection[str]:
        """Return the clients whose devices are connected."""

    def send(self, client: str, data: bytes) -> str:
        """Send a request to a client; return its ticket."""

    def receive(self, timeout: float) -> Iterable[Arrival]:
        """Return the answers that have come within some seconds."""


@dataclass
class _Call:
    """A request that has not been answered.

    Attributes:
        client: The client.
        round: The round of the offer.
        path: The file of the offer; ``None`` if it was sent in an earlier round.
        provided: Bytes of the first state in it, by component.
        ticket: The ticket of what is under way; empty if nothing is.
        failures: How often the connection has failed.
        due: When to send.
        reached: Whether the device has been sent anything.
    """

    client: str
    round: int
    path: Path | None
    provided: dict[str, int] = field(default_factory=dict)
    ticket: str = ""
    failures: int = 0
    due: float = 0.0
    reached: bool = False


class _Round(NamedTuple):
    """The calls of a round that are open, and the replies so far.

    Attributes:
        ctx: The round.
        calls: By client.
        replies: By client; an update is in a file until its turn comes.
    """

    ctx: RoundContext
    calls: dict[str, _Call]
    replies: dict[str, Reply | Path]


@dataclass
class NetworkLink:
    """Sends the offers of a round to devices, and yields their replies in the order of the offers.

    A device that is away, or fails on the way, is asked again until the deadline. A reply that
    comes after it is dropped, or counts in the next round of its client. Offers and replies lie in
    files, so that memory does not grow with the number of clients.

    Attributes:
        run: The run.
        transport: Carries bytes.
        agreement: Returns what a client must agree with.
        check: Raises an exception if a signal has asked to stop.
        deadline: Seconds of a round's exchange; ``None`` to wait for every participant.
        late: What becomes of a reply that comes after the deadline: ``drop``, or ``next``: the
            device is sent nothing new, and the reply counts in the next round of its client.
        waiting: See `Link`. A reply that is not asked for is asked of the device again.
    """

    run: Run
    transport: Transport
    agreement: Callable[[str], Agreement]
    check: Callable[[], None]
    deadline: float | None = None
    late: Late = "drop"
    waiting: int = field(default=0, init=False)
    _expected: dict[str, _Call] = field(default_factory=dict, init=False)
    _early: dict[str, bytes | None] = field(default_factory=dict, init=False)
    _agreed: set[str] = field(default_factory=set, init=False)
    _errors: dict[str, float] = field(default_factory=dict, init=False)
    _provided: dict[str, dict[str, int]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Remove the offers of a server that was killed in the middle of a round."""
        for left in self.run.folder.path.glob(f"{_SPOOL}*"):
            shutil.rmtree(left, ignore_errors=True)

    def exchange(self, ctx: RoundContext, offers: Iterable[Offer]) -> Iterator[Reply]:
        """See `Link`."""
        with tempfile.TemporaryDirectory(prefix=_SPOOL, dir=self.run.folder.path) as folder:
            round = _Round(ctx, {}, {})
            for offer in offers:
                round.calls[offer.client] = self._called(ctx, offer, Path(folder))
            clients = tuple(round.calls)
            self._wait(round, Path(folder))
            for client in clients:
                reply = round.replies.pop(client)
                yield self._read(client, reply) if isinstance(reply, Path) else reply

    def _read(self, client: str, path: Path) -> Reply:
        data = path.read_bytes()
        path.unlink()
        provided = self._provided.pop(client)
        return Reply(client, data, self._errors.pop(client, None), provided=provided)

    def _called(self, ctx: RoundContext, offer: Offer, folder: Path) -> _Call:
        """Return the call of a client: a new one, or the one that it is still at work on."""
        client = offer.client
        if client in self._expected:
            return self._expected.pop(client)
        path = folder / f"{client}.offer"
        request, provided = self._request(ctx, offer)
        path.write_bytes(request)
        return _Call(client, ctx.round, path, provided)

    def _request(self, ctx: RoundContext, offer: Offer) -> tuple[bytes, dict[str, int]]:
        """Return the offer with what the device needs to take it up, and the bytes of that."""
        run, client = self.run, offer.client
        last = run.federation.last_round(client)
        coded = run.channel.codec is not None
        first, sizes = b"", dict[str, int]()
        if last is None:
            first, sizes = provision(run.federation, run.algorithm, client, coded=coded)
        header = {"client": client, "round": ctx.round, "last": last}
        return Envelope("offer", header, [first, offer.data or b""]).to_bytes(), sizes

    # Waiting ----------------------------------------------------------------------------------

    def _wait(self, round: _Round, folder: Path) -> None:
        """Send, receive and send again, until all have answered or the time is over."""
        start = time.monotonic()
        early = [(t, self._early.pop(t)) for t in self._tickets(round.calls) if t in self._early]
        while round.calls:
            self.check()
            self._send_due(round)
            for ticket, data in (*early, *self.transport.receive(0.0 if early else _POLL)):
                call = next((c for c in round.calls.values() if c.ticket == ticket), None)
                if call is not None:
                    call.ticket = ""
                    self._arrived(round, call, data, folder)
                elif ticket in self._tickets(self._expected):
                    self._early[ticket] = data  # its client takes no part in this round
                else:
                    log.info("an answer came too late, and was dropped")
            early = []
            if self.deadline is not None and time.monotonic() - start > self.deadline:
                self._close(round)

    @staticmethod
    def _tickets(calls: Mapping[str, _Call]) -> list[str]:
        return [call.ticket for call in calls.values()]

    def _send_due(self, round: _Round) -> None:
        online = self.transport.online()
        for call in round.calls.values():
            if (
                call.path is None
                or call.ticket
                or call.due > time.monotonic()
                or call.client not in online
            ):
                continue
            request = call.path.read_bytes()
            if call.client not in self._agreed:
                offer = Envelope.of(request)
                facts = self.agreement(call.client).plain()
                request = offer._replace(header={**offer.header, "agreement": facts}).to_bytes()
            call.ticket, call.reached = self.transport.send(call.client, request), True

    def _close(self, round: _Round) -> None:
        """Give up those who have not answered in time."""
        for client, call in round.calls.items():
            kind: FailureKind = "straggler" if call.reached else "dropout"
            awaited = self.late == "next" and bool(call.ticket)
            if awaited:
                self._expected[client] = replace(call, path=None)
            reply = _failed(round.ctx, client, kind)
            round.replies[client] = reply._replace(expected=awaited, reached=call.reached)
        round.calls.clear()

    # Answers ----------------------------------------------------------------------------------

    def _arrived(self, round: _Round, call: _Call, data: bytes | None, folder: Path) -> None:
        if data is None:
            self._again(round, call)
            return
        try:
            answer = Envelope.of(data)
            if answer.header.get("client") != call.client:
                raise EnvelopeError(f"it says that it is client {answer.header.get('client')!r}")
            self._handle(round, call, answer, folder)
        except MALFORMED as error:
            self._refuse(round, call, [str(error)], stage="uplink")

    def _handle(self, round: _Round, call: _Call, answer: Envelope, folder: Path) -> None:
        if answer.kind == "stranger" and call.path is not None:
            self._agreed.discard(call.client)  # it has been started anew
        elif answer.kind in ("stranger", "stopped"):
            self._again(round, call)
        elif answer.kind == "refused":
            self._refuse(round, call, answer.header["reasons"], stage="handshake")
        elif answer.kind == "missing":
            rounds = f"it has those of rounds {answer.header['rounds']}"
            reason = f"the device lacks its state of round {answer.header['last']}; {rounds}"
            self._refuse(round, call, [reason], stage="rollback")
        elif answer.header["round"] != call.round:
            self._refuse(round, call, [f"it is of round {answer.header['round']}"], stage="uplink")
        elif answer.kind == "failure":
            told = answer.header["failure"]
            failure = Failure(round.ctx.round, call.client, **told)
            reply = Reply(call.client, failure=failure, provided=call.provided)
            self._settle(round, call, reply)
        elif answer.kind == "update":
            self._keep_update(round, call, answer, folder)
        else:
            self._refuse(round, call, [f"unknown answer {answer.kind!r}"], stage="uplink")

    def _keep_update(self, round: _Round, call: _Call, answer: Envelope, folder: Path) -> None:
        (data,) = answer.parts
        told = answer.header.get("codec_error")
        if told is not None and self.run.channel.codec is not None:
            error = float(told)
            if not 0 <= error < math.inf:
                raise EnvelopeError(f"codec_error must be finite and not negative, got {error}")
            self._errors[call.client] = error
        path = folder / f"{call.client}.reply"
        path.write_bytes(data)
        self._provided[call.client] = call.provided
        self._settle(round, call, path)

    def _settle(self, round: _Round, call: _Call, reply: Reply | Path) -> None:
        failure = None if isinstance(reply, Path) else reply.failure
        if failure is None or failure.kind != "refused":
            self._agreed.add(call.client)  # it has looked at the settings, and trained
        round.replies[call.client] = reply
        del round.calls[call.client]
        if call.path is not None:
            call.path.unlink(missing_ok=True)

    def _again(self, round: _Round, call: _Call) -> None:
        """Try later; the device may have been started anew."""
        if (
            call.path is None
        ):  # a late answer that will not come: an offer follows in the next round
            self._settle(round, call, _failed(round.ctx, call.client, "straggler"))
            return
        pause = _PATIENCE[min(call.failures, len(_PATIENCE) - 1)]
        call.failures += 1
        call.due = time.monotonic() + pause
        self._agreed.discard(call.client)
        log.info("client %r did not answer; next try in %g s", call.client, pause)

    def _refuse(self, round: _Round, call: _Call, reasons: Any, *, stage: str) -> None:  # noqa: ANN401
        """Record a refusal by either end, with its text in the client's own log."""
        text = "\n  ".join(str(reason)[:1000] for reason in list(reasons)[:50])
        log.warning("client %r, stage %r: %s", call.client, stage, text)
        self.run.folder.note(call.client, f"round {round.ctx.round}, refused, {stage}\n{text}\n\n")
        self._settle(round, call, _failed(round.ctx, call.client, "refused", stage))


def _failed(ctx: RoundContext, client: str, kind: FailureKind, stage: str = "") -> Reply:
    return Reply(client, failure=Failure(ctx.round, client, kind, stage))
