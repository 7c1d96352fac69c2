"""The device's half of a round: read the broadcast, train, write the update."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlecs_lightning.clients.edges import CodecState, Edges
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.federated.exchange.privacy import protected
from mlecs_lightning.rounds.accounting import Accountant
from mlecs_lightning.rounds.algorithm import Algorithm, ClientUpdate, Loaders
from mlecs_lightning.rounds.context import RoundContext, seed_generators
from mlecs_lightning.rounds.failures import (
    Failure,
    Fate,
    Note,
    SimulatedFailure,
    raised,
)
from mlecs_lightning.rounds.learner import EdgeLearner
from mlecs_lightning.wire.channel import Channel, SerialisedMessage, adapter_of
from mlecs_lightning.wire.messages import Message
from mlecs_lightning.wire.reports import declared_figures, with_figures, with_report

__all__ = ["Device", "Reply", "Trained"]

log = logging.getLogger(__name__)


class Reply(NamedTuple):
    """A device's answer to an offer.

    Attributes:
        client: The client.
        data: Its update in bytes; ``None`` if it failed, or the algorithm does not communicate.
        error: Relative error of the compressed update; ``None`` without a codec.
        figures: Its training figures, where there is no update that reports them.
        failure: Why the device could not answer.
        expected: Whether its answer is still awaited, and may come in a later round.
        provided: Bytes of the first state that it was sent, by component.
        reached: Whether it was sent the offer.
    """

    client: str
    data: bytes | None = None
    error: float | None = None
    figures: dict[str, float] = {}  # noqa: RUF012 - never changed
    failure: Failure | None = None
    expected: bool = False
    provided: dict[str, int] = {}  # noqa: RUF012
    reached: bool = True


class Trained(NamedTuple):
    """A client that has trained, and whose state is not kept yet.

    Attributes:
        reply: Its answer.
        state: What the store is to keep; ``None`` if it failed, and its old state stays.
    """

    reply: Reply
    state: dict[str, Any] | None = None


@dataclass
class Device:
    """Trains the clients of this process, one after another.

    It sees what a device sees: the bytes of a broadcast, its own data, and its own state. A failure
    is a `Failure` of that client alone.

    Attributes:
        algorithm: The method.
        data: The data; only the client's own and the public samples are used.
        federation: The models, and the store of the clients' states.
        channel: Reads and writes messages.
        limit_train: Maximum number of batches per training pass.
        check_stop: Raises an exception if a signal has asked to stop.
        note: Writes to a client's own log file.
        accountant: Of the differential privacy of a run that has any.
    """

    algorithm: Algorithm
    data: FederatedDataModule
    federation: Edges
    channel: Channel
    limit_train: int | None
    check_stop: Callable[[], None]
    note: Note
    accountant: Accountant | None = None
    _undeclared: set[str] = field(default_factory=set, init=False)

    def read(self, ctx: RoundContext, client: str, data: bytes | None) -> Message | None:
        """Return the broadcast in bytes that a client received; ``None`` if nothing was sent.

        Apart from `work`, so that the bytes can be freed before the training.

        Raises:
            ChannelError: If the bytes are not a broadcast to this client in this round.
        """
        if data is None:
            return None
        schema = self.algorithm.downlink(self.federation.module(client))
        return self.channel.receive(
            data,
            schema,
            direction="downlink",
            client=client,
            round=ctx.round,
            known=self._codec_state(client, data).received,
        ).message

    def work(self, ctx: RoundContext, client: str, received: Message | None, fate: Fate) -> Reply:
        """Train a client, keep its state, and return its update; see `train`."""
        return self.keep(ctx, self.train(ctx, client, received, fate))

    def keep(self, ctx: RoundContext, trained: Trained) -> Reply:
        """Keep the state of a client that has trained, and return its reply."""
        reply, state = trained
        if state is not None:
            self.federation.store.put(reply.client, state, round=ctx.round)
        return reply

    def train(
        self, ctx: RoundContext, client: str, received: Message | None, fate: Fate
    ) -> Trained:
        """Train a client.

        Args:
            ctx: The round.
            client: The client.
            received: What `read` returned.
            fate: Simulated failure of the client.
        """
        edge = self._edge(client, fate)
        codec_state = self._codec_state(client, received)
        seed_generators(ctx.seed_for(client, "update"))
        try:
            figures, parcel = self._train(edge, received, ctx, codec_state)
        except SimulatedFailure as failure:
            failed = Failure(ctx.round, client, failure.kind, edge.stage)
            return Trained(Reply(client, failure=failed))
        except Exception as error:
            failed = raised(
                error,
                kind="error",
                stage=edge.stage,
                round=ctx.round,
                client=client,
                note=self.note,
            )
            return Trained(Reply(client, failure=failed))
        edge.end_round()
        if parcel is None:
            return Trained(Reply(client, figures=figures), self.federation.state_of(edge))
        # Any answer confirms that the broadcast has arrived, so both ends now refer to it. A client
        # that fails before keeps the state of an earlier round, and so does its codec.
        coded = self.channel.codec is not None and received is not None
        kept = CodecState(adapter_of(received), parcel.memory) if coded else None
        state = self.federation.state_of(edge, kept)
        return Trained(Reply(client, parcel.data, parcel.error), state)

    def _codec_state(self, client: str, received: object) -> CodecState:
        """Return what the codec needs from the last round; nothing without codec or broadcast."""
        if self.channel.codec is None or received is None:
            return CodecState({}, {})
        return self.federation.codec_state(client)

    def _edge(self, client: str, fate: Fate) -> EdgeLearner:
        edge, watch = self.federation.edge(client), fate.watch()

        def before_step() -> None:
            self.check_stop()
            watch()

        edge.before_step = before_step
        edge.stage = ""
        return edge

    def _train(
        self,
        edge: EdgeLearner,
        received: Message | None,
        ctx: RoundContext,
        codec_state: CodecState,
    ) -> tuple[dict[str, float], SerialisedMessage | None]:
        """Train a client; pack its update together with the declared figures."""
        loaders = self._loaders(edge.name, ctx.round)
        update = self.algorithm.client_update(edge, loaders, received, ctx)
        self._tell_undeclared(update, self.algorithm.figures())
        # Under privacy no figures leave the device, since no noise covers them.
        declared = () if self.accountant else self.algorithm.figures()
        figures = declared_figures(update.metrics, declared)
        message = update.message
        if message is None:
            return figures, None
        if self.accountant is not None:
            message = protected(message, received, self.accountant, client=edge.name, ctx=ctx)
        parcel = self.channel.pack(
            with_figures(message, figures),
            with_report(self.algorithm.uplink(edge.module), declared),
            direction="uplink",
            client=edge.name,
            round=ctx.round,
            known=adapter_of(received),
            memory=codec_state.left,
        )
        return figures, parcel

    def _tell_undeclared(self, update: ClientUpdate, declared: tuple[str, ...]) -> None:
        """Log once which figures stay on the device."""
        names = update.metrics.keys() - set(declared) - self._undeclared
        if names:
            self._undeclared |= names
            log.warning(
                "figures %s of clients are not logged: %s.figures() does not declare them",
                sorted(names),
                type(self.algorithm).__name__,
            )

    def _loaders(self, client: str, round: int) -> Loaders:
        data, limit = self.data, self.limit_train
        modalities = self.federation.parties.profiles[client].modalities
        private = (
            data.pooled(modalities)
            if self.algorithm.pools_private
            else data.private(client, "train", round=round)
        )
        public = data.public("train", modalities=modalities)
        return Loaders(
            data.loader(public, limit=limit),
            data.loader(private, limit=limit),
            data.resources(client, round=round),
            data.public("val", modalities=modalities),
        )
