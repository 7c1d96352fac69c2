"""Validation and test of all parties of a federation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from lightning.fabric import Fabric
from lightning.pytorch.utilities import rank_zero_warn

from mlecs_lightning.clients.edges import Edges
from mlecs_lightning.clients.federation import FederationModels
from mlecs_lightning.cohorts.registry import Cohorts
from mlecs_lightning.data import FederatedDataModule, SampleTable
from mlecs_lightning.data.sampling import sequential_loader
from mlecs_lightning.evaluation.scores import Tested, checks_of, mean_rows
from mlecs_lightning.metrics import (
    BertScore,
    LabelScores,
    ReferencedText,
    TextMetrics,
    constant_row,
)
from mlecs_lightning.rounds.failures import EvaluationError, Failure, FailureLog, Note, raised
from mlecs_lightning.rounds.learner import EdgeLearner, Learner, ServerLearner
from mlecs_lightning.rounds.participation import Limit, limited, scored_clients
from mlecs_lightning.types import Batch

__all__ = ["Evaluator"]

T = TypeVar("T")

_KEPT = "\nno training is lost: --ckpt_path last goes on from the checkpoint of this round"

log = logging.getLogger(__name__)


class Evaluator:
    """Scores clients and server, with the best constant sentence as a baseline."""

    def __init__(
        self,
        data: FederatedDataModule,
        *,
        fabric: Fabric,
        bertscore: bool | str,
        limit: int | None,
        rouge: bool = True,
        limit_clients: Limit = None,
    ) -> None:
        """Prepare the metrics.

        Args:
            data: The federation's data.
            fabric: Where the metrics' states live.
            bertscore: Whether to add BERTScore: true for the small model of the extra
                ``bertscore``, or a hub id or directory.
            limit: Maximum number of batches per evaluation.
            rouge: Whether to score answers with ROUGE-Lsum.
            limit_clients: How many clients are scored, drawn anew for each round; all by default.
        """
        self._data, self._limit, self._limit_clients = data, limit, limit_clients
        self.rouge = rouge
        """Whether answers are scored with ROUGE-Lsum."""
        template = BertScore.of(bertscore)
        self._unknown = (
            None if template is None else template.unknown_share(data.pools.test.targets)
        )
        if self._unknown:
            rank_zero_warn(
                f"trainer.bertscore: the tokenizer of its model does not know {self._unknown:.1%} "
                "of the tokens of the test targets, and takes them all for the same: choose a "
                "model that knows their language"
            )
        reader = data.read_label if data.classes else None
        # One process evaluates a party, so the metrics must not wait for others.
        self._metrics = TextMetrics(
            reader,
            len(data.classes) or None,
            rouge=rouge,
            bertscore=template,
            sync_on_compute=False,
        ).to(fabric.device)
        self.failures = FailureLog()
        """Record of clients whose evaluation failed; a run puts its own here."""
        self.note: Note = lambda client, text: log.debug("client %r: %s", client, text)
        """Writes the full text of their exceptions; a run puts the clients' own files here."""
        self.cohorts: Cohorts | None = None
        """The clients that are scored together; a run puts its own here."""
        self._constants: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[str, float]] = {}

    def _batches(self, table: SampleTable) -> Iterable[Batch]:
        return islice(sequential_loader(table, self._data.eval_batch_size), self._limit)

    def predictions(self, learner: Learner[Any], table: SampleTable) -> list[dict[str, str]]:
        """Return id, prediction and target of every sample."""
        return learner.predict(self._batches(table))

    def scores(
        self,
        learner: EdgeLearner | ServerLearner,
        table: SampleTable,
        *,
        said: list[dict[str, str]] | None = None,
    ) -> dict[str, float]:
        """Return the text scores of a party on a table; empty for an empty table.

        Args:
            learner: The party.
            table: The samples.
            said: Gets the predictions.
        """
        rows = self.predictions(learner, table) if len(table) else []
        if said is not None:
            said += rows
        if not rows:
            return {}
        self._metrics.reset()
        self._metrics.update([r["prediction"] for r in rows], [r["target"] for r in rows])
        return self._metrics.compute()

    def _confusion(self, said: Sequence[Mapping[str, str]]) -> list[list[int]] | None:
        """Return the counts of the answers that were scored last; see `LabelScores`."""
        scores = self._metrics["labels"] if said and self._data.classes else None
        return scores.confusion.tolist() if isinstance(scores, LabelScores) else None

    def constant(self, train: SampleTable, test: SampleTable) -> dict[str, float]:
        """Return the scores of the best constant sentence of the training targets."""
        size = None if self._limit is None else self._limit * self._data.eval_batch_size
        key = (tuple(filter(None, train.targets)), test.targets[:size])
        if not all(key):
            return {}
        if key not in self._constants:
            self._constants[key] = constant_row(key[0], key[1], self._metrics)
        return self._constants[key]

    # All parties ----------------------------------------------------------------------------

    def each_client(
        self,
        federation: FederationModels,
        evaluate: Callable[[EdgeLearner], T | None],
        *,
        clients: Collection[str],
        stage: str,
        round: int,
    ) -> dict[str, T]:
        """Evaluate some clients; an exception of one is a failure of that client alone.

        Every rank evaluates its own clients; all ranks get all results.

        Args:
            federation: The clients.
            evaluate: Evaluates one client; returns ``None`` if it has no samples.
            clients: The clients that are evaluated, the same on all ranks.
            stage: Name of the evaluation, for messages.
            round: The round after which it comes, for messages.

        Returns:
            The result of each client, in their order.

        Raises:
            EvaluationError: If all have failed.
        """

        def of(client: str) -> T | Failure | None:
            try:
                return evaluate(federation.edge(client))
            except Exception as error:
                return raised(
                    error, kind="error", stage=stage, round=round, client=client, note=self.note
                )

        mine = [client for client in federation.own if client in clients]
        own: dict[str, T | Failure | None] = {}
        if self.cohorts is None:
            own = {client: of(client) for client in mine}
        else:
            for group in self.cohorts.groups(mine):
                jobs = [partial(of, client) for client in group]
                own |= zip(group, self.cohorts.run(group, jobs, work="are scored"), strict=True)
        merged = federation.ranks.merge(own)
        found = {c: r for c in federation.clients if (r := merged.get(c)) is not None}
        failed = [result for result in found.values() if isinstance(result, Failure)]
        self.failures.failures += failed
        reasons = "\n".join(failure.reason for failure in failed)
        if failed and len(failed) == len(found):
            raise EvaluationError(f"round {round}: no client could be evaluated:\n{reasons}{_KEPT}")
        if failed:
            rank_zero_warn(f"{len(failed)} of {len(found)} clients have no scores:\n{reasons}")
        return {c: result for c, result in found.items() if not isinstance(result, Failure)}

    @staticmethod
    def _of_server(
        federation: FederationModels,
        evaluate: Callable[[ServerLearner], T],
        *,
        stage: str,
        round: int,
    ) -> T:
        """Evaluate the server on the first rank; all ranks get the result.

        Raises:
            EvaluationError: On every rank, if that fails.
        """
        found, cause = None, None
        if federation.ranks.rank == 0:
            try:
                found = evaluate(federation.server)
            except Exception as error:
                cause = error
        said = None if cause is None else f"{type(cause).__name__}: {cause}"
        found, said = federation.ranks.gather((found, said))[0]
        if said is not None:
            where = f"round {round}: server, stage {stage!r}"
            raise EvaluationError(f"{where}: {said}{_KEPT}") from cause
        return found  # type: ignore[return-value]

    def validate(
        self, federation: FederationModels, *, round: int | None = None
    ) -> dict[str, float]:
        """Return the validation losses and scores of the clients, their mean, and the server's.

        Every rank evaluates its own clients, the first the server; all ranks get all results. If
        the number of clients is limited, ``evaluation/clients`` says how many were drawn, of those
        that have validation samples.

        Args:
            federation: The parties.
            round: Under a schedule, the round whose data clients are evaluated on; all by default.

        Raises:
            EvaluationError: If the evaluation fails for the server, or for all clients that have
                validation samples.
        """
        about: dict[str, Any] = {"stage": "validation", "round": round or 0}

        def evaluate(edge: EdgeLearner) -> dict[str, float] | None:
            table = self._data.private(edge.name, "val", round=round)
            return self._validated(edge, table) if len(table) else None

        drawn = self.drawn(federation, round=round)
        rows = self.each_client(federation, evaluate, clients=drawn, **about)
        values = {f"clients/{c}/val/{k}": v for c, row in rows.items() for k, v in row.items()}
        values |= {f"clients/val/{k}": v for k, v in mean_rows(rows.values()).items()}
        public = self._data.public("val")
        server = self._of_server(
            federation,
            lambda learner: self._validated(learner, public) if len(public) else {},
            **about,
        )
        count = {} if self._limit_clients is None else {"evaluation/clients": float(len(drawn))}
        return values | {f"server/val/{k}": v for k, v in server.items()} | count

    def drawn(self, federation: FederationModels, *, round: int | None = None) -> tuple[str, ...]:
        """Return the clients whose validation is due after a round: all, or a share of them.

        Args:
            federation: The parties.
            round: As in `validate`.
        """
        if not self.draws(len(federation.evaluated)):
            return federation.evaluated
        held = (c for c in federation.evaluated if len(self._data.private(c, "val", round=round)))
        return self._share(tuple(held), federation, round or 0)

    def draws(self, clients: int) -> bool:
        """Return whether fewer than a number of clients are scored at a time."""
        return limited(self._limit_clients, clients) < clients

    def _share(
        self, clients: tuple[str, ...], federation: FederationModels, round: int
    ) -> tuple[str, ...]:
        seed = federation.parties.seed
        return scored_clients(clients, self._limit_clients, seed=seed, round=round)

    def validation_names(self, clients: Iterable[str]) -> list[str]:
        """Return the names of the values of `validate`, without running a model.

        Args:
            clients: All clients.
        """
        tables = {client: self._data.private(client, "val") for client in clients}
        own = {client: self.names(table) for client, table in tables.items()}
        names = [f"clients/{client}/val/{k}" for client, names in own.items() for k in names]
        names += [f"clients/val/{k}" for k in dict.fromkeys(k for n in own.values() for k in n)]
        return names + [f"server/val/{k}" for k in self.names(self._data.public("val"))]

    def names(self, table: SampleTable) -> list[str]:
        """Return the names of a party's values on a table; none where there are no samples."""
        if not len(table) or self._limit == 0:
            return []
        telling = next((t for t in table.targets if isinstance(t, ReferencedText)), None)
        sample = [table.targets[0] if telling is None else telling]
        scratch = self._metrics.local()
        scratch.update(sample, sample)
        return ["loss", *scratch.compute()]

    def _validated(
        self, learner: EdgeLearner | ServerLearner, table: SampleTable
    ) -> dict[str, float]:
        return {"loss": learner.loss(self._batches(table)), **self.scores(learner, table)}

    def test(self, federation: FederationModels, *, round: int = 0) -> dict[str, Any]:
        """Return test scores: each client on its own domain and on all domains, and the server.

        Every rank evaluates its own clients, the first the server; all ranks get all results.

        Args:
            federation: The parties.
            round: The last round, for messages.

        Returns:
            ``clients``: for each its modalities, ``own`` and ``all``, which are empty if its
            evaluation failed or it was not drawn; ``tested``: how many were drawn, if their number
            is limited; ``server``: its scores on all domains; ``mean``: means over the
            clients that have scores; ``constant``: the same means for the best constant sentence;
            without ROUGE-Lsum ``left_out``, which names it;
            with BERTScore ``bertscore_unknown``: the share of the tokens of the test targets that
            its tokenizer does not know; ``checks``: `checks_of` each party's answers on all
            domains; with classes ``confusion``: the names of the ``classes`` and, for the server
            and each of the ``clients``, the number of answers on all domains by true class (row)
            and answered class (column; the last one counts answers without a readable class). A
            score for which no target counts is left out.

        Raises:
            EvaluationError: If the evaluation fails for the server, or for all clients.
        """
        public, table = self._data.public("train"), self._data.public("test")
        about: dict[str, Any] = {"stage": "test", "round": round}
        drawn = self._share(federation.evaluated, federation, round)
        tested = self.each_client(
            federation, partial(self.tested, federation), clients=drawn, **about
        )
        views = ("own", "all")
        clients: dict[str, dict[str, Any]] = {
            client: {
                "modalities": list(federation.module(client).modalities),
                **(tested[client].scores if client in tested else {view: {} for view in views}),
            }
            for client in federation.clients
        }

        def of_server(server: ServerLearner) -> Tested:
            said: list[dict[str, str]] = []
            scores = self.scores(server, table, said=said)
            constant = self.constant(public, table)
            checks = checks_of(constant, said, public.targets)
            return Tested({"all": scores}, {"all": constant}, checks, self._confusion(said))

        server = self._of_server(federation, of_server, **about)
        return {
            "clients": clients,
            "mean": {view: mean_rows(c[view] for c in clients.values()) for view in views},
            "server": server.scores["all"],
            "constant": {
                **{v: mean_rows(each.constant[v] for each in tested.values()) for v in views},
                "server": server.constant["all"],
            },
            "checks": {
                **{client: each.checks for client, each in tested.items()},
                "server": server.checks,
            },
            **self._confusions(tested, server),
            **({} if self.rouge else {"left_out": ["rouge_lsum"]}),
            **({} if self._limit_clients is None else {"tested": len(drawn)}),
            **({} if self._unknown is None else {"bertscore_unknown": self._unknown}),
        }

    def _confusions(self, tested: Mapping[str, Tested], server: Tested) -> dict[str, Any]:
        """Return the counts of all parties as an entry of summary.json; empty without classes."""
        if not self._data.classes:
            return {}
        clients = {c: each.confusion for c, each in tested.items() if each.confusion}
        own = {"server": server.confusion} if server.confusion else {}
        return {"confusion": {"classes": list(self._data.classes), "clients": clients, **own}}

    def tested(self, edges: Edges, edge: EdgeLearner) -> Tested:
        """Return a client's scores, those of the best constant sentence, and `checks_of` both.

        Args:
            edges: The models of the clients, this one's at least.
            edge: The client, with its state loaded.
        """
        client = edge.name
        train, test = self._data.private(client, "train"), self._data.private(client, "test")
        everywhere = self._data.held_out(client, edges.parties.profiles[client])
        public, said = self._data.public("train"), list[dict[str, str]]()
        scores = {
            "own": self.scores(edge, test),
            "all": self.scores(edge, everywhere, said=said),
        }
        counts = self._confusion(said)
        constants = {"own": self.constant(train, test), "all": self.constant(public, everywhere)}
        known = (*train.targets, *public.targets)
        checks = checks_of(constants["all"], said, known)
        return Tested(scores, constants, checks, counts)
