"""A device's end of the network: answers what the server asks, in bytes."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass, field

from mlecs_lightning.federated.exchange.device import Device, Reply
from mlecs_lightning.network.agreement import Agreement
from mlecs_lightning.network.envelope import Envelope, EnvelopeError
from mlecs_lightning.network.provision import install
from mlecs_lightning.network.store import DeviceStore
from mlecs_lightning.rounds.context import RoundContext
from mlecs_lightning.rounds.failures import Failure, FailureTrace, Fate, raised
from mlecs_lightning.wire.channel import MessageLimits
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
        allow: What may leave the device, see `components_of`; ``None`` for all that the algorithm
            declares.
        trace: Simulated failures.
        ended: Whether the server has said that the run has ended.
    """

    client: str
    device: Device
    store: DeviceStore
    agreement: Agreement
    limits: MessageLimits
    allow: Collection[str] | None = None
    trace: FailureTrace | None = None
    ended: bool = field(default=False, init=False)
    _agreed: bool = field(default=False, init=False)

    def answer(self, request: bytes) -> bytes:
        """Return the answer to a request; a request that makes no sense is refused, too.

        Raises:
            Interrupted: After a signal, which stops the training.
        """
        try:
            asked = Envelope.of(request)
            reply = self._answer(asked)
        except (EnvelopeError, ChannelError, KeyError, TypeError, ValueError) as error:
            log.warning("a request was refused: %s", error)
            reply = self._refused([f"{type(error).__name__}: {error}"])
        return reply.to_bytes()

    def _answer(self, asked: Envelope) -> Envelope:
        if asked.header["client"] != self.client:
            return self._refused([f"this is client {self.client!r}"])
        if asked.kind == "end":
            self.ended = True
            return Envelope("bye", self._about())
        if asked.kind == "offer":
            return self._offered(asked)
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
        if not self.store.go_back(last):
            log.error(
                "the server asks for the state of round %s, at hand: %s", last, self.store.rounds
            )
            return Envelope("missing", {**about, "last": last, "rounds": self.store.rounds})
        algorithm, edges = self.device.algorithm, self.device.federation
        if last is None and provided:
            install(edges, algorithm, self.client, provided, limits=self.limits)
        ctx = RoundContext(round, edges.parties.seed, (self.client,))
        try:
            received = self.device.read(ctx, self.client, offered)
        except ChannelError as error:
            failure = raised(
                error,
                kind="refused",
                stage="downlink",
                round=round,
                client=self.client,
                note=self.device.note,
            )
            return self._told(Reply(self.client, failure=failure), about)
        fate = self.trace.fate(round, self.client) if self.trace else Fate()
        reply = self.device.work(ctx, self.client, received, fate)
        if last is not None and reply.failure is None:
            self.store.forget(int(last))
        return self._told(reply, about)

    @staticmethod
    def _told(reply: Reply, about: dict[str, object]) -> Envelope:
        if isinstance(reply.failure, Failure):
            failure = asdict(reply.failure)
            del failure["round"], failure["client"]  # the server knows them
            return Envelope("failure", {**about, "failure": failure})
        error = {} if reply.error is None else {"codec_error": reply.error}
        return Envelope("update", {**about, **error}, [reply.data or b""])
