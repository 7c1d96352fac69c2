"""A device's end of the network: answers what the server asks, in bytes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from functools import partial

from mlecs_lightning.evaluation.parties import Evaluator
from mlecs_lightning.evaluation.scores import Tested
from mlecs_lightning.federated.exchange.device import Device, Reply
from mlecs_lightning.network.agreement import Agreement
from mlecs_lightning.network.envelope import MALFORMED, Envelope
from mlecs_lightning.network.provision import install
from mlecs_lightning.network.scores import SCORES, message_of
from mlecs_lightning.network.store import DeviceStore
from mlecs_lightning.rounds.context import RoundContext
from mlecs_lightning.rounds.failures import Failure, FailureTrace, Fate, raised
from mlecs_lightning.storage.files import FullDiskError
from mlecs_lightning.wire.channel import Channel, MessageLimits
from mlecs_lightning.wire.encoding import ChannelError
from mlecs_lightning.wire.messages import REPORT, Schema, component_of

__all__ = ["DeviceSession", "components_of"]

log = logging.getLogger(__name__)


def components_of(schema: Schema) -> set[str]:
    """Return the names of everything that a message of this form holds.

    These are the components of its tensors, as the ledger counts them, and its scalars.
    """
    tensors = {component_of(name) for name in (*schema.tensors, *schema.optional)}
    return tensors | set(schema.scalars)


@dataclass
class DeviceSession:
    """Answers the requests of a server, one at a time.

    Attributes:
        client: The client that this device is.
        device: Trains it.
        store: Its states.
        agreement: What the server must agree with.
        limits: How large a message may be.
        evaluator: Scores the client on the samples of this device.
        allow: What may leave the device, see `components_of`; ``None`` for all that the algorithm
            declares.
        trace: Simulated failures.
        ended: Whether the server has said that the run has ended.
        last: The last round of this client that counts, as the server said at the end; ``None`` if
            there is none. The store may hold later ones, of replies that were lost or of an earlier
            run.
    """

    client: str
    device: Device
    store: DeviceStore
    agreement: Agreement
    limits: MessageLimits
    evaluator: Evaluator
    allow: Collection[str] | None = None
    trace: FailureTrace | None = None
    ended: bool = field(default=False, init=False)
    last: int | None = field(default=None, init=False)
    _agreed: bool = field(default=False, init=False)
    _tested: tuple[int, Tested] | None = field(default=None, init=False)
    _answered: tuple[object, Envelope] | None = field(default=None, init=False)

    def answer(self, request: bytes) -> bytes:
        """Return the answer to a request; a request that makes no sense is refused, too.

        Raises:
            Interrupted: After a signal, which stops the training.
        """
        try:
            asked = Envelope.of(request)
            reply = self._answer(asked)
        except (ChannelError, *MALFORMED) as error:
            log.warning("a request was refused: %s", error)
            reply = self._refused([f"{type(error).__name__}: {error}"])
        return reply.to_bytes()

    def _answer(self, asked: Envelope) -> Envelope:
        if asked.header["client"] != self.client:
            return self._refused([f"this is client {self.client!r}"])
        if asked.kind == "end":
            last = asked.header["last"]
            self.last = None if last is None else int(last)
            self.ended = True
            return Envelope("bye", self._about())
        if asked.kind == "offer":
            return self._offered(asked)
        if asked.kind == "evaluate":
            return self._evaluated(asked)
        return self._refused([f"unknown request {asked.kind!r}"])

    def _about(self) -> dict[str, str]:
        return {"client": self.client}

    def _refused(self, reasons: list[str]) -> Envelope:
        return Envelope("refused", {**self._about(), "reasons": [r[:1000] for r in reasons[:50]]})

    def _offered(self, asked: Envelope) -> Envelope:
        """Compare both ends, if the server tells its settings, and take up the offer."""
        if "agreement" in asked.header:
            faults = self.agreement.faults(asked.header["agreement"]) + self._withheld()
            self._agreed = not faults
            if faults:
                log.error("the server has other settings:\n  %s", "\n  ".join(faults))
                return self._refused(faults)
        return self._work(asked) if self._agreed else Envelope("stranger", self._about())

    def tested(self, round: int) -> Tested:
        """Return the scores of the client after a round, whose state is at hand."""
        if self._tested is None or self._tested[0] != round:
            self.store.go_back(round)
            edges = self.device.federation
            self._tested = (round, self.evaluator.tested(edges, edges.edge(self.client)))
        return self._tested[1]

    def _evaluated(self, asked: Envelope) -> Envelope:
        """Send the client's scores, if this device allows it."""
        if self.allow is None or SCORES not in self.allow:
            return self._refused([f"`allow` of device {self.client!r} does not name {SCORES!r}"])
        last, names = int(asked.header["last"]), [str(name) for name in asked.header["names"]]
        if last not in self.store.rounds:
            return self._refused([f"no state of round {last}, only of {self.store.rounds}"])
        try:
            scores = self.tested(last).scores
        except Exception as error:
            failure = raised(
                error,
                kind="error",
                stage="test",
                round=last,
                client=self.client,
                note=self.device.note,
            )
            return self._refused([failure.reason])
        data = Channel(self.limits).send(message_of(scores, names), client=self.client, round=last)
        return Envelope(SCORES, {**self._about(), "round": last}, [data])

    def _withheld(self) -> list[str]:
        if self.allow is None:
            return []
        algorithm = self.device.algorithm
        declared = components_of(algorithm.uplink(self.device.federation.module(self.client)))
        reports = algorithm.figures() and self.device.accountant is None
        declared |= {REPORT} if reports else set()
        return [
            f"{type(algorithm).__name__} sends {name!r}, which `allow` of device {self.client!r} "
            f"does not name; it names {sorted(self.allow)}"
            for name in sorted(declared - set(self.allow))
        ]

    def _work(self, asked: Envelope) -> Envelope:
        """Train the client for a round."""
        round, last = int(asked.header["round"]), asked.header["last"]
        provided, offered = asked.parts
        about = {**self._about(), "round": round}
        asked_for = (round, last, *(hashlib.sha256(part).digest() for part in asked.parts))
        if self._answered is not None and self._answered[0] == asked_for:
            return self._answered[1]  # the answer was lost on its way
        self._answered = None
        if not self.store.go_back(last):
            log.error(
                "the server asks for the state of round %s, at hand: %s", last, self.store.rounds
            )
            return Envelope("missing", {**about, "last": last, "rounds": self.store.rounds})
        failed = partial(raised, round=round, client=self.client, note=self.device.note)
        try:
            reply = self._trained(round, first=provided if last is None else b"", offered=offered)
        except ChannelError as error:
            failure = failed(error, kind="refused", stage="downlink")
            return self._told(Reply(self.client, failure=failure), about)
        except FullDiskError as error:
            log.error("%s; the next round begins with the state of round %s", error, last)
            failure = failed(error, kind="error", stage="state")
            return self._told(Reply(self.client, failure=failure), about)
        told = self._told(reply, about)
        if reply.failure is None:
            self._answered = (asked_for, told)
            if last is not None:
                self.store.forget(int(last))
        return told

    def _trained(self, round: int, *, first: bytes, offered: bytes) -> Reply:
        """Train the client for a round, after its first state if that is provided."""
        edges = self.device.federation
        if first:
            install(edges, self.device.algorithm, self.client, first, limits=self.limits)
        ctx = RoundContext(round, edges.parties.seed, (self.client,))
        received = self.device.read(ctx, self.client, offered)
        fate = self.trace.fate(round, self.client) if self.trace else Fate()
        return self.device.work(ctx, self.client, received, fate)

    @staticmethod
    def _told(reply: Reply, about: dict[str, object]) -> Envelope:
        if isinstance(reply.failure, Failure):
            failure = asdict(reply.failure)
            del failure["round"], failure["client"]  # the server knows them
            return Envelope("failure", {**about, "failure": failure})
        error = {} if reply.error is None else {"codec_error": reply.error}
        return Envelope("update", {**about, **error}, [reply.data or b""])
