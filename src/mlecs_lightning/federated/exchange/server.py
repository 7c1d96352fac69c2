"""The server's half of an exchange with a client: its broadcast, and the check of its update."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from mlecs_lightning.federated.exchange.device import Reply
from mlecs_lightning.federated.exchange.link import Offer
from mlecs_lightning.federated.exchange.outcome import Outcome
from mlecs_lightning.federated.run import Run
from mlecs_lightning.rounds.bounds import bounded
from mlecs_lightning.rounds.context import RoundContext
from mlecs_lightning.rounds.failures import raised
from mlecs_lightning.rounds.participation import LoopSettings
from mlecs_lightning.wire.channel import adapter_of, component_sizes
from mlecs_lightning.wire.encoding import ChannelError
from mlecs_lightning.wire.messages import Message
from mlecs_lightning.wire.reports import figures_of, with_report

__all__ = ["Exchange"]


class _Sent(NamedTuple):
    """What the server remembers of an offer until the reply.

    Attributes:
        round: The round.
        message: The broadcast as the device reads it; ``None`` if nothing was sent.
        sizes: Its bytes by component.
        errors: The codec's reconstruction error.
    """

    round: int
    message: Message | None = None
    sizes: dict[str, int] = {}  # noqa: RUF012 - never changed
    errors: dict[str, float] = {}  # noqa: RUF012


class Exchange:
    """Makes offers to clients and accepts their replies; touches no client's data or state."""

    def __init__(self, run: Run, settings: LoopSettings) -> None:
        """Take the parts.

        Args:
            run: The run.
            settings: Settings of its rounds.
        """
        self._run, self._settings = run, settings
        self._sent: dict[str, _Sent] = {}
        self._expected: set[str] = set()

    def offers(
        self, ctx: RoundContext, broadcasts: Iterable[tuple[str, Message | None]]
    ) -> Iterator[Offer]:
        """Yield an offer for each broadcast.

        Args:
            ctx: The round.
            broadcasts: Each client's message; ``None`` sends nothing.
        """
        for client, message in broadcasts:
            if client in self._expected:
                yield Offer(client, None)
                continue
            # Nothing here may keep the bytes: they are freed before the training.
            yield Offer(client, self._packed(ctx, client, message))

    def _packed(self, ctx: RoundContext, client: str, message: Message | None) -> bytes | None:
        if message is None:
            self._sent[client] = _Sent(ctx.round)
            return None
        run = self._run
        schema = run.algorithm.downlink(run.federation.module(client))
        known: Mapping[str, Tensor] = {}
        if run.channel.codec is not None:
            known = run.federation.codec_state(client).received
        parcel = run.channel.pack(
            message, schema, direction="downlink", client=client, round=ctx.round, known=known
        )
        read = parcel.message
        if run.channel.codec is not None:
            read = run.channel.codec.unpack(read, schema, "downlink", known=known)
        read = Message({k: t.detach().cpu() for k, t in read.tensors.items()}, read.scalars)
        sizes = component_sizes(parcel.message, len(parcel.data))
        self._sent[client] = _Sent(ctx.round, read, sizes, _error("downlink", parcel.error))
        return parcel.data

    def accept(self, ctx: RoundContext, reply: Reply) -> Outcome:
        """Check a reply; a fault in it is a `Failure` of its client alone.

        A late reply is read as one of the round that it was asked in: the adapter that the device
        was sent then is the one that it has changed.

        Args:
            ctx: The round.
            reply: The reply to the client's offer.
        """
        run, client = self._run, reply.client
        sent = self._sent.pop(client)
        self._expected.discard(client)
        if reply.expected:
            # What was sent is counted in the round that sent it, so not once more.
            self._sent[client] = sent._replace(sizes={}, errors={})
            self._expected.add(client)
        if reply.failure is not None:
            sizes = sent.sizes if reply.reached else {}
            return Outcome(client, sizes, failure=reply.failure, provided=reply.provided)
        if run.federation.remote:
            # Any answer says that the device has ended the round, even one that is refused here.
            coded = run.channel.codec is not None
            received = adapter_of(sent.message) if coded else {}
            run.federation.confirm(client, ended=sent.round, received=received, round=ctx.round)
        outcome = self._answered(replace(ctx, round=sent.round), reply, sent)
        return outcome._replace(late=ctx.round - sent.round, provided=reply.provided)

    def _answered(self, ctx: RoundContext, reply: Reply, sent: _Sent) -> Outcome:
        """Check a reply that is no failure."""
        run, client = self._run, reply.client
        if reply.data is None:
            return Outcome(client, sent.sizes, metrics=reply.figures | sent.errors)
        try:
            message, sizes = self._received(ctx, reply.client, reply.data, sent.message)
            accepted, moved = self._accepted(ctx, client, message, sent.message)
        except ChannelError as error:
            failure = raised(
                error,
                kind="refused",
                stage="uplink",
                round=ctx.round,
                client=client,
                note=run.folder.note,
            )
            return Outcome(client, sent.sizes, failure=failure)
        data = reply.data
        if run.channel.codec is not None or accepted is not message:
            # Other ranks, and a resumed round, do not have the codec's state of this client.
            data = run.channel.send(accepted, client=client, round=ctx.round)
        metrics = figures_of(accepted) | sent.errors | _error("uplink", reply.error)
        return Outcome(client, sent.sizes, sizes, data, accepted, metrics, moved=moved)

    def _received(
        self, ctx: RoundContext, client: str, data: bytes, sent: Message | None
    ) -> tuple[Message, dict[str, int]]:
        """Return an update that has the declared form, and its bytes by component.

        Raises:
            ChannelError: If it does not have that form.
        """
        run = self._run
        declared = run.algorithm.uplink(run.federation.module(client))
        figures = () if run.accountant else run.algorithm.figures()
        return run.channel.receive(
            data,
            with_report(declared, figures),
            direction="uplink",
            client=client,
            round=ctx.round,
            known=adapter_of(sent),
        )

    def _accepted(
        self, ctx: RoundContext, client: str, message: Message, sent: Message | None
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
            run.claims.check(client, run.phase(client, ctx.round), run.claimed(message))
            former = run.algorithm.former(run.federation.server, message, sent)
            return bounded(message, former, self._settings.update_limits, usual=run.moves.usual())
        except ChannelError as error:
            raise type(error)(f"uplink of client {client!r} refused: {error}") from None


def _error(direction: str, error: float | None) -> dict[str, float]:
    return {} if error is None else {f"channel/{direction}_error": error}
