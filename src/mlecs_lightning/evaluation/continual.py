"""Continual evaluation under a schedule: on the present domain, on earlier ones and on all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlecs_lightning.clients.federation import FederationModels
from mlecs_lightning.data import FederatedDataModule, Schedule
from mlecs_lightning.evaluation.parties import Evaluator
from mlecs_lightning.evaluation.scores import mean_rows
from mlecs_lightning.metrics import continual_scores
from mlecs_lightning.rounds.learner import EdgeLearner

__all__ = ["ContinualEvaluation"]

_METRICS = ("macro_f1", "accuracy", "rouge_lsum")
_VIEWS = ("present", "earlier", "all")


class ContinualEvaluation:
    """Evaluates clients on every phase of their schedule, and summarises the scores.

    The domains of the metrics are the phases' names. The samples are those of the client's own test
    split: a domain of which it holds no test samples has no score.
    """

    def __init__(self, data: FederatedDataModule) -> None:
        """Take the data with its schedule.

        Args:
            data: Dealt to the clients. Without a schedule there is nothing to evaluate.
        """
        self._data = data

    def due(self, clients: Sequence[str], round: int) -> bool:
        """Return whether a phase of any client ends with this round."""
        schedule = self._data.schedule
        return schedule is not None and any(
            phase.start == round + 1 for client in clients for phase in schedule.phases(client)
        )

    def names(self, clients: Sequence[str], *, rouge: bool = True) -> list[str]:
        """Return the names of the metrics that `row` can give; none without a schedule.

        Args:
            clients: All clients.
            rouge: Whether ROUGE-Lsum is computed.
        """
        schedule = self._data.schedule
        if schedule is None:
            return []
        views = [f"stream/{view}" for view in _VIEWS]
        parts = [*views, *(f"clients/{client}/{view}" for client in clients for view in views)]
        for client in clients:
            parts += [f"clients/{client}/domains/{name}" for name in _domains(schedule, client)]
        scored = _METRICS if self._data.classes else ("rouge_lsum",)
        metrics = [metric for metric in scored if rouge or metric != "rouge_lsum"]
        return [f"{part}/{metric}" for part in parts for metric in metrics]

    def row(
        self,
        evaluator: Evaluator,
        federation: FederationModels,
        round: int,
        *,
        everyone: bool = False,
    ) -> dict[str, float]:
        """Return the metrics after a round, empty without a schedule.

        ``clients/NAME/domains/DOMAIN/SCORE`` for every domain; ``clients/NAME/stream/VIEW/SCORE``
        and, as a mean over the clients, ``stream/VIEW/SCORE`` for the view ``present``, ``earlier``
        (mean of the domains met before, without the present one) and ``all``.

        Every rank evaluates its own clients; all ranks get all metrics. A client whose evaluation
        fails has no values. If the evaluator scores a share of the clients, the others have values
        where one of their phases ends, without which their continual scores would be wrong.

        Args:
            evaluator: Scores a client on a phase.
            federation: The clients.
            round: The round.
            everyone: Evaluate all clients.
        """
        schedule = self._data.schedule
        if schedule is None:
            return {}
        phases = schedule.phases

        def evaluate(edge: EdgeLearner) -> dict[str, float]:
            scores: dict[str, dict[str, float]] = {}
            for phase in phases(edge.name):
                if phase.name not in scores:
                    table = self._data.private(edge.name, "test", round=phase.start)
                    found = evaluator.scores(edge, table)
                    scores[phase.name] = {k: found[k] for k in _METRICS if k in found}
            return _client_row(schedule, edge.name, scores, round)

        chosen = set(evaluator.drawn(federation, round=round))
        due = [c for c in federation.evaluated if everyone or c in chosen or self.due([c], round)]
        rows = evaluator.each_client(federation, evaluate, clients=due, stage="stream", round=round)
        merged = {f"clients/{c}/{k}": v for c, row in rows.items() for k, v in row.items()}
        views = [{k: v for k, v in row.items() if k.startswith("stream/")} for row in rows.values()]
        return merged | mean_rows(views)

    def summary(
        self, history: Sequence[Mapping[str, float]], clients: Sequence[str]
    ) -> dict[str, Any] | None:
        """Return the continual scores for summary.json; ``None`` without a schedule.

        For each client its phases, and for each score `ContinualScores`; their means over the
        clients under ``mean``.

        Args:
            history: The metrics of all rounds, with those of `row` where it was called.
            clients: All clients.
        """
        schedule = self._data.schedule
        if schedule is None:
            return None
        scores = {client: _client_scores(schedule, client, history) for client in clients}
        means = {
            metric: mean_rows(own[metric] for own in scores.values() if metric in own)
            for metric in _METRICS
        }
        phases = {
            client: [[phase.start, phase.name] for phase in schedule.phases(client)]
            for client in clients
        }
        return {
            "clients": {client: {"phases": phases[client], **scores[client]} for client in clients},
            "mean": {metric: mean for metric, mean in means.items() if mean},
        }


def _domains(schedule: Schedule, client: str) -> list[str]:
    """Return the names of a client's phases, each once, in their order."""
    return list(dict.fromkeys(phase.name for phase in schedule.phases(client)))


def _client_row(
    schedule: Schedule, client: str, scores: Mapping[str, Mapping[str, float]], round: int
) -> dict[str, float]:
    """Return a client's metrics after a round.

    Args:
        schedule: Says which domains the client has met.
        client: The client.
        scores: For each of its domains the scores.
        round: The round.
    """
    now = schedule.phase(client, round).name
    met = {phase.name for phase in schedule.phases(client) if phase.start <= round} - {now}
    views = {
        "present": [scores[now]],
        "earlier": [scores[name] for name in scores if name in met],
        "all": list(scores.values()),
    }
    row = {f"domains/{name}/{k}": v for name, own in scores.items() for k, v in own.items()}
    for view in _VIEWS:
        row |= {f"stream/{view}/{k}": v for k, v in mean_rows(views[view]).items()}
    return row


def _client_scores(
    schedule: Schedule, client: str, history: Sequence[Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Return for each metric of a client its continual scores, those that are numbers."""
    found: dict[str, dict[str, float]] = {}
    for metric in _METRICS:
        keys = {
            name: f"clients/{client}/domains/{name}/{metric}" for name in _domains(schedule, client)
        }
        evaluated = [row for row in history if any(key in row for key in keys.values())]
        if not evaluated:
            continue
        rows = [{n: row[key] for n, key in keys.items() if key in row} for row in evaluated]
        present = [schedule.phase(client, int(row["round"])).name for row in evaluated]
        scores = continual_scores(rows, present)._asdict()
        found[metric] = {name: value for name, value in scores.items() if not math.isnan(value)}
    return found
