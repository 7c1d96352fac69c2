"""The loop over rounds: broadcast, client updates, aggregation, server update, evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, zip_longest

from mlecs_lightning.aggregation import Aggregate
from mlecs_lightning.federated.exchange.cohort_link import CohortLink
from mlecs_lightning.federated.exchange.device import Device
from mlecs_lightning.federated.exchange.link import InProcessLink, Link
from mlecs_lightning.federated.exchange.outcome import Outcome
from mlecs_lightning.federated.exchange.privacy import PrivateSum
from mlecs_lightning.federated.exchange.server import Exchange
from mlecs_lightning.federated.run import Run
from mlecs_lightning.rounds.context import RoundContext, seed_generators
from mlecs_lightning.rounds.failures import EvaluationError, Failure, Fate
from mlecs_lightning.rounds.participation import LoopSettings
from mlecs_lightning.rounds.signals import Interrupted, StopSignals
from mlecs_lightning.wire.encoding import decode
from mlecs_lightning.wire.messages import Message

__all__ = ["ClientsFailedError", "RoundLoop"]

log = logging.getLogger(__name__)


class ClientsFailedError(RuntimeError):
    """Every client of a round raised an exception, so the failure is not one device's.

    A round whose only participant fails is none, if the federation has more clients.
    """


class RoundLoop:
    """Trains a run, round by round.

    Clients are distributed over the ranks. Each rank serves one of its clients at a time, then all
    ranks exchange the outcomes, so that every rank aggregates every update. All ranks train the
    server together.
    """

    def __init__(
        self,
        run: Run,
        settings: LoopSettings,
        call: Callable[..., None],
        stop: StopSignals,
        *,
        link: Link | None = None,
    ) -> None:
        """Take the parts.

        Args:
            run: The run.
            settings: Settings of its rounds.
            call: Calls a hook of all callbacks.
            stop: Tells whether a signal has asked to stop.
            link: To the devices; by default they live in this process.
        """
        self._run, self._settings, self._call, self._stop = run, settings, call, stop
        self._exchange = Exchange(run, settings)
        self._private: PrivateSum | None = None
        self._link: Link = link or self._in_process()
        if run.federation.ranks.size == 1:
            # Ranks that train together cannot stop one by one in the middle of a pass.
            run.federation.server.before_step = stop.check

    def _in_process(self) -> Link:
        device, settings = self._device(), self._settings
        if self._run.cohorts is None:
            return InProcessLink(device, settings.faults)
        if why := self._run.algorithm.why_alone():
            log.info("trainer.cohort: clients train one after another: %s", why)
            return InProcessLink(device, settings.faults)
        return CohortLink(device, settings.faults, self._run.cohorts)

    def _device(self) -> Device:
        run = self._run
        return Device(
            run.algorithm,
            run.data,
            run.federation,
            run.channel,
            self._settings.limit_train,
            self._stop.check,
            run.folder.note,
            run.accountant,
        )

    def warm_up(self, *, loaded: bool = False) -> None:
        """Train the server alone.

        Args:
            loaded: Whether its warm-up was loaded, so that only what follows it is left.
        """
        run, losses = self._run, dict[str, float]()
        # Round -1: its seeds are apart from those of every round.
        ctx = RoundContext(-1, run.federation.parties.seed, run.federation.clients)
        server, loaders = run.federation.server, run.server_loaders
        if not loaded:
            self._seed(ctx, "server", "warmup")
            losses |= run.algorithm.warmup(server, loaders, ctx)
        self._seed(ctx, "server", "after_warmup")
        losses |= run.algorithm.after_warmup(server, loaders, ctx)
        # Plain numbers: a checkpoint with one of NumPy's could not be read again.
        run.warmup = {f"server/{k}": float(v) for k, v in losses.items()}
        if run.warmup or not loaded:
            run.folder.log(run.warmup, step=0)

    def round(self, number: int) -> None:
        """Train one round, and add its metrics to the history.

        Raises:
            Interrupted: After a signal. The clients served so far are in `Run.served`.
            ClientsFailedError: If every client raised an exception, and it was not one of many.
            EvaluationError: If the evaluation of the server or of every client failed. The round
                itself has ended then: it is in the history, without scores.
            NonFiniteError: If the server diverged.
        """
        run, settings = self._run, self._settings
        seed = run.federation.parties.seed
        drawn = settings.participants(run.federation.clients, seed=seed, round=number)
        if run.accountant is not None:  # the draw may not be a function of the seed
            drawn = run.federation.ranks.gather(drawn)[0]
        ctx = RoundContext(number, seed, drawn)
        self._call("on_round_start", round=number, participants=ctx.participants)
        metrics: dict[str, float] = {"round": number}
        aggregate = self._aggregate(ctx, metrics)
        if run.accountant is not None and self._private is not None:
            # With secure noise a resumed round draws anew: who was served before it, and is not
            # drawn again, has shown the server an update all the same.
            served = chain.from_iterable(run.federation.ranks.gather(tuple(run.served)))
            asked = dict.fromkeys((*ctx.participants, *served))
            run.accountant.add_round(asked, self._private.added)
            metrics |= run.accountant.figures()
        metrics |= self._channel_errors(ctx, metrics)
        self._seed(ctx, "server", "update")
        losses = run.algorithm.server_update(
            run.federation.server, aggregate, run.server_loaders, ctx
        )
        run.federation.server.end_round()
        metrics |= {f"server/{k}": float(v) for k, v in losses.items()}
        failure: EvaluationError | None = None
        try:
            metrics |= self._evaluate(number)
        except EvaluationError as error:
            failure = error
        for way in ("uplink", "downlink"):
            metrics[f"communication/{way}_bytes"] = run.ledger.total(way)
        run.history.append(metrics)
        run.clock.append(run.seconds)
        run.moves.end_round()
        run.served.clear()
        run.federation.store.drop_messages()
        run.log_round(metrics, run.clock[-1])
        if failure is not None:
            raise failure

    def _evaluate(self, number: int) -> dict[str, float]:
        """Return the scores of all parties after a round, if they are due."""
        run, due = self._run, self._settings.validates(number)
        scores = run.evaluator.validate(run.federation, round=number) if due else {}
        if due or run.continual.due(run.federation.evaluated, number):
            scores |= run.continual.row(run.evaluator, run.federation, number)
        return scores

    def _aggregate(self, ctx: RoundContext, metrics: dict[str, float]) -> Aggregate | None:
        """Serve all clients; return the aggregate of their updates, if there are enough."""
        run = self._run
        if run.accountant is not None:
            self._private = PrivateSum(run.federation, run.algorithm, run.accountant, ctx)
            self._private.begin(run.server_loaders)
        updates = self._updates(ctx, metrics)
        if not run.algorithm.communicates:
            for _ in updates:
                pass
            return None
        if self._private is not None:
            updates = self._private.messages(updates)
        aggregate = run.algorithm.aggregate(updates, ctx)
        least = max(1, self._settings.participation.min_clients)
        if aggregate is None or aggregate.clients < least:
            return None
        if self._private is not None:
            aggregate = replace(aggregate, clients=len(self._private.added))
        metrics["aggregate/error"] = aggregate.error
        metrics["aggregate/clients"] = aggregate.clients
        self._call(
            "on_aggregate", round=ctx.round, error=aggregate.error, clients=aggregate.clients
        )
        return aggregate

    @staticmethod
    def _channel_errors(ctx: RoundContext, metrics: dict[str, float]) -> dict[str, float]:
        """Return the codec's reconstruction errors, as means over the clients."""
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
        """Serve one client per rank at a time; yield the updates that the server receives."""
        federation, ranks = self._run.federation, self._run.federation.ranks
        shares = [
            [c for c in ctx.participants if federation.owner[c] == r] for r in range(ranks.size)
        ]
        serving = self._serve(ctx, tuple(shares[ranks.rank]))
        failed: list[Failure] = []
        signum: int | None = None
        for _ in zip_longest(*shares):
            outcome, stopped = None, None
            try:
                outcome = next(serving, None)
            except Interrupted as error:
                stopped = error.signum
            # The decoded message stays here; the other ranks decode it themselves.
            told = outcome if ranks.size == 1 or outcome is None else outcome._replace(message=None)
            gathered = ranks.gather((told, stopped, self._link.waiting))
            gathered[ranks.rank] = (outcome, stopped, self._link.waiting)
            for settled, _, _ in gathered:
                if settled is None:
                    continue
                delivered = self._settle(settled, ctx, metrics)
                if settled.failure is not None and settled.failure.kind == "error":
                    failed.append(settled.failure)
                if delivered is not None:
                    yield settled.client, delivered
            signum = next((each for _, each, _ in gathered if each is not None), signum)
            if signum is not None and not any(waiting for _, _, waiting in gathered):
                raise Interrupted(signum)
        # Of several clients, one that was drawn alone says nothing of the others.
        alone = len(ctx.participants) == 1 < len(federation.clients)
        if failed and not alone and len(failed) == len(ctx.participants):
            reasons = "\n".join(map(self._told, failed))
            raise ClientsFailedError(f"round {ctx.round}: every client failed:\n{reasons}")

    def _settle(
        self, outcome: Outcome, ctx: RoundContext, metrics: dict[str, float]
    ) -> Message | None:
        """Record and report the outcome of a client, the same way on every rank."""
        run, client = self._run, outcome.client
        if outcome.provided:
            run.ledger.add("provision", client, outcome.provided)
        if outcome.down:
            run.ledger.add("downlink", client, outcome.down)
        if outcome.failure is not None:
            run.failures.failures.append(outcome.failure)
            self._call(
                "on_client_fault",
                round=ctx.round,
                client=client,
                kind=outcome.failure.kind,
                reason=self._told(outcome.failure),
            )
            return None
        metrics |= {f"clients/{client}/{k}": v for k, v in outcome.metrics.items()}
        if outcome.up:
            run.ledger.add("uplink", client, outcome.up)
        self._call("on_client_end", round=ctx.round, client=client, metrics=outcome.metrics)
        if outcome.data is None:
            return None
        message = decode(outcome.data)[0] if outcome.message is None else outcome.message
        run.moves.add(outcome.moved)
        asked = ctx.round - outcome.late
        if outcome.late:
            metrics[f"clients/{client}/late"] = outcome.late
        run.claims.register(client, run.phase(client, asked), run.claimed(message))
        return message

    def _told(self, failure: Failure) -> str:
        """Return the public text of a failure, and the file that has the full one."""
        path = self._run.folder.client_log(failure.client)
        return f"{failure.reason}; full text in {path}" if failure.error else failure.reason

    def _serve(self, ctx: RoundContext, clients: tuple[str, ...]) -> Iterator[Outcome]:
        """Serve this rank's clients, one after another."""
        run, trace = self._run, self._settings.faults
        fates = {c: trace.fate(ctx.round, c) if trace else Fate() for c in clients}
        served = tuple(c for c in clients if c not in run.served and not fates[c].drops)
        broadcasts: Iterable[tuple[str, Message | None]] = (
            run.algorithm.broadcast(
                run.federation.server, run.server_loaders, replace(ctx, participants=served)
            )
            if run.algorithm.communicates and served
            else [(client, None) for client in served]
        )
        if self._private is not None:
            broadcasts = self._private.checked(broadcasts)
        replies = iter(self._link.exchange(ctx, self._exchange.offers(ctx, broadcasts)))
        for client in clients:
            if not self._link.waiting:
                self._stop.check()
            if client in run.served:
                yield self._served_before(client)
                continue
            if fates[client].drops:
                outcome = Outcome(client, failure=Failure(ctx.round, client, "dropout"))
            else:
                outcome = self._exchange.accept(ctx, next(replies))
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

    # All ranks ------------------------------------------------------------------------------

    def stop_together(self) -> None:
        """Stop on all ranks, if any rank has been asked to."""
        requested = self._run.federation.ranks.gather(self._stop.requested)
        for signum in requested:
            if signum is not None:
                raise Interrupted(signum)

    def _seed(self, ctx: RoundContext, party: str, stage: str) -> None:
        """Seed every generator for one party's stage, so that it depends on nothing before it.

        Ranks that train the server together draw different dropout masks for their shards.
        """
        offset = self._run.federation.ranks.rank if party == "server" else 0
        seed_generators(ctx.seed_for(party, stage) + offset)
