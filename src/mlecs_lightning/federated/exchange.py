"""One client's part of a round: downlink, training, uplink."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from mlecs_lightning.clients.federation import CodecState
from mlecs_lightning.federated.run import Outcome, Run
from mlecs_lightning.rounds.algorithm import ClientUpdate, Loaders
from mlecs_lightning.rounds.bounds import bounded
from mlecs_lightning.rounds.context import RoundContext, seed_generators
from mlecs_lightning.rounds.failures import Failure, FailureKind, Fate, SimulatedFailure, raised
from mlecs_lightning.rounds.learner import EdgeLearner
from mlecs_lightning.rounds.participation import LoopSettings
from mlecs_lightning.rounds.signals import StopSignals
from mlecs_lightning.wire.channel import ReceivedMessage, SerialisedMessage
from mlecs_lightning.wire.encoding import ChannelError
from mlecs_lightning.wire.messages import Message, Schema
from mlecs_lightning.wire.reports import declared_figures, figures_of, with_figures, with_report

__all__ = ["Exchange"]

log = logging.getLogger(__name__)


class _Trained(NamedTuple):
    """A client's figures, and its packed update (``None`` if it sends nothing)."""

    figures: dict[str, float]
    schema: Schema
    parcel: SerialisedMessage | None


class Exchange:
    """Serves one client after another; a failure is a `Failure` of that client alone."""

    def __init__(self, run: Run, settings: LoopSettings, stop: StopSignals) -> None:
        """Take the parts.

        Args:
            run: The run.
            settings: Settings of its rounds.
            stop: Tells whether a signal has asked to stop.
        """
        self._run, self._settings, self._stop = run, settings, stop
        self._figures = run.algorithm.figures()
        self._undeclared: set[str] = set()

    def serve(self, ctx: RoundContext, client: str, sent: Message | None, fate: Fate) -> Outcome:
        """Send a client the broadcast, train it, and receive its update.

        Args:
            ctx: The round.
            client: The client.
            sent: The broadcast; ``None`` if nothing is sent.
            fate: Simulated failure of the client.
        """
        run, federation = self._run, self._run.federation
        about: dict[str, Any] = {"client": client, "round": ctx.round}
        received: Message | None = None
        down: dict[str, int] = {}
        errors: dict[str, float] = {}
        coded = run.channel.codec is not None and sent is not None
        codec_state = federation.codec_state(client) if coded else CodecState({}, {})
        if sent is not None:
            (received, down), errors = self._carry_down(sent, codec_state, about)
        edge = self._edge(client, fate)
        known = _adapter(received)
        way: dict[str, Any] = {"direction": "uplink", "known": known, **about}
        seed_generators(ctx.seed_for(client, "update"))
        try:
            trained = self._train(edge, received, ctx, memory=codec_state.left, **way)
        except SimulatedFailure as failure:
            return Outcome(
                client, down, failure=Failure(ctx.round, client, failure.kind, edge.stage)
            )
        except Exception as error:
            return Outcome(client, down, failure=self._failed(error, "error", edge.stage, **about))
        edge.end_round()
        figures, schema, parcel = trained
        if parcel is None:
            federation.keep(edge, round=ctx.round)
            return Outcome(client, down, metrics=figures | errors)
        # Any answer confirms that the broadcast has arrived, so both ends now refer to it. A client
        # that fails before keeps the state of an earlier round, and so does its codec.
        federation.keep(
            edge, round=ctx.round, codec_state=CodecState(known, parcel.memory) if coded else None
        )
        try:
            delivery = run.channel.receive(parcel.data, schema, **way)
            message, moved = self._accepted(delivery.message, received, **about)
        except ChannelError as error:
            return Outcome(client, down, failure=self._failed(error, "refused", "uplink", **about))
        data = parcel.data
        if coded or message is not delivery.message:
            # Other ranks, and a resumed round, do not have the codec's state of this client.
            data = run.channel.send(message, **about)
        metrics = figures_of(message) | errors | _error("uplink", parcel)
        return Outcome(client, down, delivery.sizes, data, message, metrics, moved=moved)

    # On the device ----------------------------------------------------------------------------

    def _edge(self, client: str, fate: Fate) -> EdgeLearner:
        edge, watch = self._run.federation.edge(client), fate.watch()

        def before_step() -> None:
            self._stop.check()
            watch()

        edge.before_step = before_step
        edge.stage = ""
        return edge

    def _train(
        self, edge: EdgeLearner, received: Message | None, ctx: RoundContext, **way: Any
    ) -> _Trained:
        """Train a client; pack its update together with the declared figures."""
        run = self._run
        loaders = self._loaders(edge.name, ctx.round)
        update = run.algorithm.client_update(edge, loaders, received, ctx)
        self._tell_undeclared(update)
        figures = declared_figures(update.metrics, self._figures)
        if update.message is None:
            return _Trained(figures, Schema(), None)
        schema = with_report(run.algorithm.uplink(edge.module), self._figures)
        message = with_figures(update.message, figures)
        return _Trained(figures, schema, run.channel.pack(message, schema, **way))

    def _tell_undeclared(self, update: ClientUpdate) -> None:
        """Log once which figures stay on the device."""
        names = update.metrics.keys() - self._figures - self._undeclared
        if names:
            self._undeclared |= names
            log.warning(
                "figures %s of clients are not logged: %s.figures() does not declare them",
                sorted(names),
                type(self._run.algorithm).__name__,
            )

    def _loaders(self, client: str, round: int) -> Loaders:
        run, limit = self._run, self._settings.limit_train
        modalities = run.federation.parties.profiles[client].modalities
        private = (
            run.data.pooled(modalities)
            if run.algorithm.pools_private
            else run.data.private(client, "train", round=round)
        )
        public = run.data.public("train", modalities=modalities)
        return Loaders(
            run.data.loader(public, limit=limit),
            run.data.loader(private, limit=limit),
            run.data.resources(client, round=round),
            run.data.public("val", modalities=modalities),
        )

    def _failed(
        self, error: Exception, kind: FailureKind, stage: str, *, client: str, round: int
    ) -> Failure:
        """Return the public part of an exception; its text goes to the client's own file."""
        note = self._run.folder.note
        return raised(error, kind=kind, stage=stage, round=round, client=client, note=note)

    # On the server ----------------------------------------------------------------------------

    def _carry_down(
        self, sent: Message, codec_state: CodecState, about: Mapping[str, Any]
    ) -> tuple[ReceivedMessage, dict[str, float]]:
        """Return the broadcast as the device receives it, and the codec's reconstruction error.

        In a function of its own, so that the bytes are freed before the training.
        """
        run = self._run
        module = run.federation.module(about["client"])
        schema = run.algorithm.downlink(run.federation.server, module)
        way: dict[str, Any] = {"direction": "downlink", "known": codec_state.received, **about}
        parcel = run.channel.pack(sent, schema, **way)
        return run.channel.receive(parcel.data, schema, **way), _error("downlink", parcel)

    def _accepted(
        self, message: Message, received: Message | None, *, client: str, round: int
    ) -> tuple[Message, float]:
        """Check the content of an update that has the declared form.

        Returns:
            The update, clipped if necessary, and how far it has moved.

        Raises:
            ChannelError: If the algorithm refuses it, it is too large, or it contradicts an
                earlier one.
        """
        run = self._run
        if faults := run.algorithm.refusals(run.federation.server, message):
            raise ChannelError(f"uplink of client {client!r} refused: {'; '.join(faults)}")
        try:
            run.claims.check(client, run.phase(client, round), run.claimed(message))
            former = run.algorithm.former(run.federation.server, message, received)
            return bounded(message, former, self._settings.update_limits, usual=run.moves.usual())
        except ChannelError as error:
            raise type(error)(f"uplink of client {client!r} refused: {error}") from None


def _error(direction: str, parcel: SerialisedMessage) -> dict[str, float]:
    return {} if parcel.error is None else {f"channel/{direction}_error": parcel.error}


def _adapter(message: Message | None) -> dict[str, Tensor]:
    tensors = {} if message is None else message.tensors
    return {k: t for k, t in tensors.items() if k.startswith("adapter/")}
