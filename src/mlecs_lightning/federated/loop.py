"""One round after another: broadcast, client updates, aggregation, server update, evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from mlecs_lightning.federated.aggregator import Aggregate
from mlecs_lightning.federated.algorithm import Loaders
from mlecs_lightning.federated.channel import ChannelError, Delivery, Parcel, decode
from mlecs_lightning.federated.context import RoundContext, seed_generators
from mlecs_lightning.federated.faults import ClientFault, EvaluationError, Fate, Fault, raised
from mlecs_lightning.federated.federation import Wire
from mlecs_lightning.federated.messages import Message
from mlecs_lightning.federated.participation import LoopSettings, sample_clients
from mlecs_lightning.federated.run import Outcome, Run
from mlecs_lightning.federated.signals import Interrupted, StopSignals

__all__ = ["ClientsFailedError", "RoundLoop"]

log = logging.getLogger(__name__)


class ClientsFailedError(RuntimeError):
    """The code of every client of a round raised: that is no misfortune of single devices."""


class RoundLoop:
    """Trains a run, round by round.

    Clients are spread over the ranks. In turn every rank serves one of its clients, then all tell
    each other what came of it, so that every rank aggregates every update. The server trains on all
    ranks together.
    """

    def __init__(
        self, run: Run, settings: LoopSettings, call: Callable[..., None], stop: StopSignals
    ) -> None:
        """Take the parts.

        Args:
            run: What is trained.
            settings: How.
            call: Calls a hook of all callbacks.
            stop: Says when to stop.
        """
        self._run, self._settings, self._call, self._stop = run, settings, call, stop
        if run.federation.ranks.size == 1:
            # Ranks that train together cannot stop in the middle of a pass, one without another.
            run.federation.server.before_step = stop.check

    def warm_up(self) -> None:
        """Train the server alone."""
        run = self._run
        # Round -1: its seeds are apart from those of every round.
        ctx = RoundContext(-1, run.federation.parties.seed, run.federation.clients)
        self._seed(ctx, "server", "warmup")
        losses = run.algorithm.warmup(run.federation.server, run.server_loaders, ctx)
        run.warmup = {f"server/{k}": v for k, v in losses.items()}
        run.folder.log(run.warmup, step=0)
        self.stop_together()

    def round(self, number: int) -> None:
        """Train one round, and add its metrics to the history.

        Raises:
            Interrupted: After a signal. Clients that were served are in `Run.served`.
            ClientsFailedError: If the code of every client raised.
            EvaluationError: If the server or every client could not be judged. The round itself has
                ended then: it is in the history, without scores.
            NonFiniteError: If the server diverged.
        """
        run, settings = self._run, self._settings
        seed = run.federation.parties.seed
        participants = sample_clients(
            run.federation.clients, settings.client_fraction, seed=seed, round=number
        )
        ctx = RoundContext(number, seed, participants)
        self._call("on_round_start", round=number, participants=ctx.participants)
        metrics: dict[str, float] = {"round": number}
        aggregate = self._aggregate(ctx, metrics)
        metrics |= self._channel_errors(ctx, metrics)
        self._seed(ctx, "server", "update")
        losses = run.algorithm.server_update(
            run.federation.server, aggregate, run.server_loaders, ctx
        )
        run.federation.server.end_round()
        metrics |= {f"server/{k}": v for k, v in losses.items()}
        failure: EvaluationError | None = None
        try:
            metrics |= self._judge(number)
        except EvaluationError as error:
            failure = error
        for way in ("uplink", "downlink"):
            metrics[f"communication/{way}_bytes"] = run.ledger.total(way)
        run.history.append(metrics)
        run.served.clear()
        run.federation.store.drop_messages()
        run.folder.log(metrics, step=number + 1)
        if failure is not None:
            raise failure

    def _judge(self, number: int) -> dict[str, float]:
        """Return the scores of all parties after a round, where they are due."""
        run, every = self._run, self._settings.val_every
        due = bool(every) and (number + 1) % every == 0
        scores = run.evaluator.validate(run.federation, round=number) if due else {}
        if due or run.stream.due(run.federation.clients, number):
            scores |= run.stream.row(run.evaluator, run.federation, number)
        return scores

    def _aggregate(self, ctx: RoundContext, metrics: dict[str, float]) -> Aggregate | None:
        """Serve all clients; return what their updates came to, if there were enough."""
        run = self._run
        updates = self._updates(ctx, metrics)
        if not run.algorithm.communicates:
            for _ in updates:
                pass
            return None
        aggregate = run.algorithm.aggregate(updates, ctx)
        if aggregate is None or aggregate.clients < max(1, self._settings.min_clients):
            return None
        metrics["aggregate/error"] = aggregate.error
        metrics["aggregate/clients"] = aggregate.clients
        self._call(
            "on_aggregate", round=ctx.round, error=aggregate.error, clients=aggregate.clients
        )
        return aggregate

    @staticmethod
    def _channel_errors(ctx: RoundContext, metrics: dict[str, float]) -> dict[str, float]:
        """Return what a codec lost on the way, mean over the clients that it served."""
        means = {}
        for name in ("channel/uplink_error", "channel/downlink_error"):
            keys = [f"clients/{client}/{name}" for client in ctx.participants]
            values = [metrics[key] for key in keys if key in metrics]
            if values:
                means[name] = math.fsum(values) / len(values)
        return means

    # Clients --------------------------------------------------------------------------------

    def _updates(
        self, ctx: RoundContext, metrics: dict[str, float]
    ) -> Iterator[tuple[str, Message]]:
        """Serve one client of every rank after another; yield what the server receives."""
        federation, ranks = self._run.federation, self._run.federation.ranks
        shares = [
            [c for c in ctx.participants if federation.owner[c] == r] for r in range(ranks.size)
        ]
        serving = self._serve(ctx, tuple(shares[ranks.rank]))
        failed: list[Fault] = []
        for _ in zip_longest(*shares):
            outcome, stopped = None, None
            try:
                outcome = next(serving, None)
            except Interrupted as error:
                stopped = error.signum
            # The decoded message stays here; the others decode it themselves.
            told = outcome if ranks.size == 1 or outcome is None else outcome._replace(message=None)
            gathered = ranks.gather((told, stopped))
            gathered[ranks.rank] = (outcome, stopped)
            for settled, _ in gathered:
                if settled is None:
                    continue
                delivered = self._settle(settled, ctx, metrics)
                if settled.fault is not None and settled.fault.kind == "error":
                    failed.append(settled.fault)
                if delivered is not None:
                    yield settled.client, delivered
            for _, signum in gathered:
                if signum is not None:
                    raise Interrupted(signum)
        if failed and len(failed) == len(ctx.participants):
            reasons = "\n".join(fault.reason for fault in failed)
            raise ClientsFailedError(f"round {ctx.round}: every client failed:\n{reasons}")

    def _settle(
        self, outcome: Outcome, ctx: RoundContext, metrics: dict[str, float]
    ) -> Message | None:
        """Count and report what became of a client, the same way on every rank."""
        run, client = self._run, outcome.client
        if outcome.down:
            run.ledger.add("downlink", client, outcome.down)
        if outcome.fault is not None:
            run.faults.faults.append(outcome.fault)
            self._call(
                "on_client_fault",
                round=ctx.round,
                client=client,
                kind=outcome.fault.kind,
                reason=outcome.fault.reason,
            )
            return None
        metrics |= {f"clients/{client}/{k}": v for k, v in outcome.metrics.items()}
        if outcome.up:
            run.ledger.add("uplink", client, outcome.up)
        self._call("on_client_end", round=ctx.round, client=client, metrics=outcome.metrics)
        if outcome.message is not None or outcome.data is None:
            return outcome.message
        return decode(outcome.data)[0]

    def _serve(self, ctx: RoundContext, clients: tuple[str, ...]) -> Iterator[Outcome]:
        """Serve this rank's clients, one after another."""
        run, trace = self._run, self._settings.faults
        fates = {c: trace.fate(ctx.round, c) if trace else Fate() for c in clients}
        served = tuple(c for c in clients if c not in run.served and not fates[c].drops)
        broadcasts: Iterator[tuple[str, Message | None]] = iter(
            run.algorithm.broadcast(
                run.federation.server, run.server_loaders, replace(ctx, participants=served)
            )
            if run.algorithm.communicates and served
            else [(client, None) for client in served]
        )
        for client in clients:
            self._stop.check()
            if client in run.served:
                yield self._served_before(client)
                continue
            if fates[client].drops:
                outcome = Outcome(
                    client, fault=Fault(ctx.round, client, "dropout", "did not take part")
                )
            else:
                outcome = self._serve_one(ctx, *next(broadcasts), fates[client])
                if outcome.data is not None and self._settings.keeps_messages:
                    run.federation.store.put_message(client, outcome.data)
            run.served[client] = outcome._replace(data=None, message=None)
            yield outcome

    def _served_before(self, client: str) -> Outcome:
        outcome = self._run.served[client]
        if not outcome.up:
            return outcome
        data = self._run.federation.store.message(client)
        return outcome._replace(data=data, message=decode(data)[0])

    def _serve_one(
        self, ctx: RoundContext, client: str, sent: Message | None, fate: Fate
    ) -> Outcome:
        """Carry the broadcast to a client, train it, carry its update back."""
        run, federation = self._run, self._run.federation
        module = federation.module(client)
        about: dict[str, Any] = {"client": client, "round": ctx.round}
        received: Message | None = None
        down: dict[str, int] = {}
        errors: dict[str, float] = {}
        coded = run.channel.codec is not None and sent is not None
        wire = federation.wire(client) if coded else Wire({}, {})
        if sent is not None:
            (received, down), errors = self._carry_down(sent, wire, about)
        edge = federation.edge(client)
        watch = fate.watch()

        def before_step() -> None:
            self._stop.check()
            watch()

        edge.before_step = before_step
        self._seed(ctx, client, "update")
        try:
            update = run.algorithm.client_update(
                edge, self._loaders(client, ctx.round), received, ctx
            )
            if update.message is not None:
                known = _adapter(received)
                schema = run.algorithm.uplink(module)
                way: dict[str, Any] = {"known": known, **about}
                parcel = run.channel.pack(
                    update.message, schema, direction="uplink", memory=wire.left, **way
                )
                errors |= _error("uplink", parcel)
        except ClientFault as drawn:
            reason = f"client {client!r}, stage {edge.stage!r}: {drawn}"
            return Outcome(client, down, fault=Fault(ctx.round, client, drawn.kind, reason))
        except Exception as error:
            log.debug("client %r failed", client, exc_info=True)
            fault = raised(error, round=ctx.round, client=client, stage=edge.stage)
            return Outcome(client, down, fault=fault)
        edge.end_round()
        metrics = update.metrics | errors
        if update.message is None:
            federation.keep(edge, round=ctx.round)
            return Outcome(client, down, metrics=metrics)
        # An answer, good or bad, says that the broadcast has arrived: from now on both ends go by
        # it. A client that fails before that has no state of this round, and neither has its wire.
        federation.keep(edge, round=ctx.round, wire=Wire(known, parcel.memory) if coded else None)
        try:
            delivery = run.channel.receive(parcel.data, schema, direction="uplink", **way)
            message = self._bounded(delivery, received, client)
            if faults := run.algorithm.refusals(federation.server, message):
                raise ChannelError(f"uplink of client {client!r} refused: {'; '.join(faults)}")
        except ChannelError as error:
            return Outcome(client, down, fault=Fault(ctx.round, client, "refused", str(error)))
        data = parcel.data
        if coded or message is not delivery.message:
            # Other ranks, and a round that is gone on with, know nothing of this client's wire.
            data = run.channel.send(message, **about)
        return Outcome(client, down, delivery.sizes, data, message, metrics)

    def _carry_down(
        self, sent: Message, wire: Wire, about: Mapping[str, Any]
    ) -> tuple[Delivery, dict[str, float]]:
        """Return what a device reads of a broadcast, and what a codec lost of it.

        Apart from the training, which the bytes need not outlast.
        """
        run = self._run
        module = run.federation.module(about["client"])
        schema = run.algorithm.downlink(run.federation.server, module)
        way: dict[str, Any] = {"direction": "downlink", "known": wire.received, **about}
        parcel = run.channel.pack(sent, schema, **way)
        return run.channel.receive(parcel.data, schema, **way), _error("downlink", parcel)

    def _bounded(self, delivery: Delivery, received: Message | None, client: str) -> Message:
        """Limit how far a client's adapter may be from the one that was sent to it.

        Raises:
            ChannelError: If it is further, and such updates are refused.
        """
        limit, message = self._settings.max_update_norm, delivery.message
        if limit is None or received is None:
            return message
        change = {
            k: t.double() - received.tensors[k].double()
            for k, t in message.tensors.items()
            if k in received.tensors and k.startswith("adapter/")
        }
        if not change:
            return message
        norm = float(torch.nn.utils.get_total_norm(change.values()))
        if norm <= limit:
            return message
        if self._settings.large_update == "refuse":
            raise ChannelError(
                f"uplink of client {client!r} refused: norm of the update is {norm:.4g}, "
                f"trainer.max_update_norm {limit:.4g}"
            )
        clipped = {
            k: (received.tensors[k].double() + t * (limit / norm)).to(message.tensors[k].dtype)
            for k, t in change.items()
        }
        return Message({**message.tensors, **clipped}, message.scalars)

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
        )

    # All ranks ------------------------------------------------------------------------------

    def stop_together(self) -> None:
        """Stop on all ranks, if any has been asked to."""
        requested = self._run.federation.ranks.gather(self._stop.requested)
        for signum in requested:
            if signum is not None:
                raise Interrupted(signum)

    def _seed(self, ctx: RoundContext, party: str, stage: str) -> None:
        """Seed every generator for one party's stage: a round depends on nothing before it.

        Ranks that train the server together draw different dropout masks for their parts.
        """
        offset = self._run.federation.ranks.rank if party == "server" else 0
        seed_generators(ctx.seed_for(party, stage) + offset)


def _error(direction: str, parcel: Parcel) -> dict[str, float]:
    return {} if parcel.error is None else {f"channel/{direction}_error": parcel.error}


def _adapter(message: Message | None) -> dict[str, Tensor]:
    tensors = {} if message is None else message.tensors
    return {k: t for k, t in tensors.items() if k.startswith("adapter/")}
