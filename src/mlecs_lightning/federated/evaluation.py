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
from mlecs_lightning.federated.learner import EdgeLearner, ServerLearner
from mlecs_lightning.metrics import BertScore, TextMetrics, constant_row
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

    def predictions(
        self, learner: EdgeLearner | ServerLearner, table: SampleTable
    ) -> list[dict[str, str]]:
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

    def validate(self, federation: Federation) -> dict[str, float]:
        """Return the validation losses and scores of all clients, their mean, and the server's."""
        values: dict[str, float] = {}
        rows = []
        for client in federation.clients:
            table = self._data.private(client, "val")
            if len(table):
                edge = federation.edge(client)
                row = {"loss": edge.loss(self._batches(table)), **self.scores(edge, table)}
                values |= {f"clients/{client}/val/{k}": v for k, v in row.items()}
                rows.append(row)
        values |= {f"clients/val/{k}": v for k, v in mean_rows(rows).items()}
        table = self._data.public("val")
        if len(table):
            server = federation.server
            row = {"loss": server.loss(self._batches(table)), **self.scores(server, table)}
            values |= {f"server/val/{k}": v for k, v in row.items()}
        return values

    def test(self, federation: Federation) -> dict[str, Any]:
        """Return test scores: each client on its own domain and on all domains, and the server.

        Returns:
            ``clients``: for each its modalities, ``own`` and ``all``; ``server``: its scores on all
            domains; ``mean``: means over the clients; ``constant``: the same means for the best
            constant sentence.
        """
        clients: dict[str, Any] = {}
        constants: dict[str, list[dict[str, float]]] = {"own": [], "all": []}
        public = self._data.public("train")
        for client, profile in federation.parties.profiles.items():
            edge = federation.edge(client)
            tables = {
                "own": self._data.private(client, "test"),
                "all": self._data.held_out(client, profile),
            }
            clients[client] = {
                "modalities": list(edge.module.modalities),
                **{view: self.scores(edge, table) for view, table in tables.items()},
            }
            own = self._data.private(client, "train")
            constants["own"].append(self.constant(own, tables["own"]))
            constants["all"].append(self.constant(public, tables["all"]))
        return {
            "clients": clients,
            "mean": {view: mean_rows(c[view] for c in clients.values()) for view in constants},
            "server": self.scores(federation.server, self._data.public("test")),
            "constant": {
                **{view: mean_rows(rows) for view, rows in constants.items()},
                "server": self.constant(public, self._data.public("test")),
            },
        }
