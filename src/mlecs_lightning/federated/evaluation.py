"""How the parties of a federation do on held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from lightning.fabric import Fabric

from mlecs_lightning.data import FederatedDataModule, SampleTable
from mlecs_lightning.data.sampling import sequential_loader
from mlecs_lightning.federated.federation import Federation
from mlecs_lightning.federated.learner import EdgeLearner, Learner, ServerLearner
from mlecs_lightning.metrics import BertScore, ReferencedText, TextMetrics, constant_row
from mlecs_lightning.types import Batch

__all__ = ["Evaluator", "mean_rows"]


def mean_rows(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each value over the rows that have it and in which it is a number."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if not math.isnan(value):
                columns.setdefault(name, []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in columns.items()}


class Evaluator:
    """Scores clients and server; every score has the best constant sentence beside it."""

    def __init__(
        self,
        data: FederatedDataModule,
        *,
        fabric: Fabric,
        bertscore: bool | str,
        limit: int | None,
    ) -> None:
        """Prepare the metrics.

        Args:
            data: The federation's data.
            fabric: Where the metrics' states live.
            bertscore: Whether to add BERTScore: true for the small model of the extra
                ``bertscore``, or a hub id or directory.
            limit: Most batches of an evaluation.
        """
        self._data, self._limit = data, limit
        template = BertScore(None if bertscore is True else bertscore) if bertscore else None
        reader = data.read_label if data.classes else None
        # A party is evaluated by one process: the others must not be waited for.
        self._metrics = TextMetrics(
            reader, len(data.classes) or None, bertscore=template, sync_on_compute=False
        ).to(fabric.device)
        self._constants: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[str, float]] = {}

    def _batches(self, table: SampleTable) -> Iterable[Batch]:
        return islice(sequential_loader(table, self._data.eval_batch_size), self._limit)

    def predictions(self, learner: Learner[Any], table: SampleTable) -> list[dict[str, str]]:
        """Return id, prediction and target of every sample."""
        return learner.predict(self._batches(table))

    def scores(self, learner: EdgeLearner | ServerLearner, table: SampleTable) -> dict[str, float]:
        """Return the text scores of a party on a table; empty for an empty table."""
        rows = self.predictions(learner, table) if len(table) else []
        if not rows:
            return {}
        self._metrics.reset()
        self._metrics.update([r["prediction"] for r in rows], [r["target"] for r in rows])
        return self._metrics.compute()

    def constant(self, train: SampleTable, test: SampleTable) -> dict[str, float]:
        """Return the scores of the best constant sentence of the training targets."""
        size = None if self._limit is None else self._limit * self._data.eval_batch_size
        key = (train.targets, test.targets[:size])
        if not all(key):
            return {}
        if key not in self._constants:
            self._constants[key] = constant_row(key[0], key[1], self._metrics)
        return self._constants[key]

    def validate(self, federation: Federation, *, round: int | None = None) -> dict[str, float]:
        """Return the validation losses and scores of all clients, their mean, and the server's.

        Every rank judges its own clients, the first the server; all get everything.

        Args:
            federation: Who is judged.
            round: Under a schedule, the round whose data clients are judged on; all by default.
        """
        own = {}
        for client in federation.own:
            table = self._data.private(client, "val", round=round)
            if len(table):
                own[client] = self._validated(federation.edge(client), table)
        rows = federation.ranks.merge(own)
        clients = [c for c in federation.clients if c in rows]
        values = {f"clients/{c}/val/{k}": v for c in clients for k, v in rows[c].items()}
        values |= {f"clients/val/{k}": v for k, v in mean_rows(rows[c] for c in clients).items()}
        table = self._data.public("val")
        server = {}
        if len(table) and federation.ranks.rank == 0:
            server = self._validated(federation.server, table)
        server = federation.ranks.gather(server)[0]
        return values | {f"server/val/{k}": v for k, v in server.items()}

    def validation_names(self, clients: Iterable[str]) -> list[str]:
        """Return the names of what `validate` gives, without asking a model.

        Args:
            clients: All clients.
        """
        tables = {client: self._data.private(client, "val") for client in clients}
        own = {client: self._names(table) for client, table in tables.items()}
        names = [f"clients/{client}/val/{k}" for client, names in own.items() for k in names]
        names += [f"clients/val/{k}" for k in dict.fromkeys(k for n in own.values() for k in n)]
        return names + [f"server/val/{k}" for k in self._names(self._data.public("val"))]

    def _names(self, table: SampleTable) -> list[str]:
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

    def test(self, federation: Federation) -> dict[str, Any]:
        """Return test scores: each client on its own domain and on all domains, and the server.

        Every rank judges its own clients, the first the server; all get everything.

        Returns:
            ``clients``: for each its modalities, ``own`` and ``all``; ``server``: its scores on all
            domains; ``mean``: means over the clients; ``constant``: the same means for the best
            constant sentence.
        """
        public, ranks = self._data.public("train"), federation.ranks
        tested = ranks.merge({c: self._tested(federation, c) for c in federation.own})
        clients = {c: tested[c][0] for c in federation.clients}
        server: tuple[dict[str, float], ...] = ()
        if ranks.rank == 0:
            table = self._data.public("test")
            server = (self.scores(federation.server, table), self.constant(public, table))
        scores, constant = ranks.gather(server)[0]
        views = ("own", "all")
        return {
            "clients": clients,
            "mean": {view: mean_rows(c[view] for c in clients.values()) for view in views},
            "server": scores,
            "constant": {
                **{v: mean_rows(tested[c][1][v] for c in federation.clients) for v in views},
                "server": constant,
            },
        }

    def _tested(
        self, federation: Federation, client: str
    ) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        """Return a client's scores, and those of the best constant sentence beside them."""
        edge = federation.edge(client)
        train, test = self._data.private(client, "train"), self._data.private(client, "test")
        everywhere = self._data.held_out(client, federation.parties.profiles[client])
        scores = {"own": self.scores(edge, test), "all": self.scores(edge, everywhere)}
        constants = {
            "own": self.constant(train, test),
            "all": self.constant(self._data.public("train"), everywhere),
        }
        return {"modalities": list(edge.module.modalities), **scores}, constants
