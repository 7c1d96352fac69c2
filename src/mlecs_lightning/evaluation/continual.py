"""Under a schedule: how the clients do on the present domain, on earlier ones and on all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlecs_lightning.clients.federation import Federation
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.evaluation.parties import Evaluator, mean_rows
from mlecs_lightning.metrics import continual_scores
from mlecs_lightning.rounds.learner import EdgeLearner

__all__ = ["Stream"]

_METRICS = ("macro_f1", "accuracy", "rouge_lsum")
_VIEWS = ("present", "earlier", "all")


class Stream:
    """Judges clients on every phase of their schedule, and sums up what came of it.

    The domains of the metrics are the phases' names. The samples are those of the client's own test
    split: a domain that it holds no test samples of has no score.
    """

    def __init__(self, data: FederatedDataModule) -> None:
        """Take the data with its schedule.

        Args:
            data: Dealt to the clients. Without a schedule there is nothing to judge.
        """
        self._data = data

    def due(self, clients: Sequence[str], round: int) -> bool:
        """Return whether a phase of some client ends with this round."""
        schedule = self._data.schedule
        return schedule is not None and any(
            phase.start == round + 1 for client in clients for phase in schedule.phases(client)
        )

    def names(self, clients: Sequence[str]) -> list[str]:
        """Return the names that `row` can give, empty without a schedule.

        Args:
            clients: All clients.
        """
        schedule = self._data.schedule
        if schedule is None:
            return []
        views = [f"stream/{view}" for view in _VIEWS]
        parts = [*views, *(f"clients/{client}/{view}" for client in clients for view in views)]
        for client in clients:
            phases = dict.fromkeys(phase.name for phase in schedule.phases(client))
            parts += [f"clients/{client}/domains/{phase}" for phase in phases]
        metrics = _METRICS if self._data.classes else ("rouge_lsum",)
        return [f"{part}/{metric}" for part in parts for metric in metrics]

    def row(self, evaluator: Evaluator, federation: Federation, round: int) -> dict[str, float]:
        """Return the metrics after a round, empty without a schedule.

        ``clients/NAME/domains/DOMAIN/SCORE`` for every domain; ``clients/NAME/stream/VIEW/SCORE``
        and, as a mean over the clients, ``stream/VIEW/SCORE`` for the view ``present``, ``earlier``
        (mean of the domains met before, the present one left out) and ``all``.

        Every rank judges its own clients; all get everything. A client that cannot be judged has no
        values.
        """
        schedule = self._data.schedule
        if schedule is None:
            return {}
        phases = schedule.phases

        def judge(edge: EdgeLearner) -> dict[str, float]:
            scores: dict[str, dict[str, float]] = {}
            for phase in phases(edge.name):
                if phase.name not in scores:
                    table = self._data.private(edge.name, "test", round=phase.start)
                    found = evaluator.scores(edge, table)
                    scores[phase.name] = {k: found[k] for k in _METRICS if k in found}
            return self._client_row(edge.name, scores, round)

        rows = evaluator.each_client(federation, judge, stage="stream", round=round)
        merged = {f"clients/{c}/{k}": v for c, row in rows.items() for k, v in row.items()}
        views = [{k: v for k, v in row.items() if k.startswith("stream/")} for row in rows.values()]
        return merged | mean_rows(views)

    def _client_row(
        self, client: str, scores: Mapping[str, Mapping[str, float]], round: int
    ) -> dict[str, float]:
        schedule = self._data.schedule
        assert schedule is not None
        now = schedule.phase(client, round).name
        met = {phase.name for phase in schedule.phases(client) if phase.start <= round} - {now}
        views = {
            "present": [scores[now]],
            "earlier": [scores[name] for name in scores if name in met],
            "all": list(scores.values()),
        }
        row = {f"domains/{name}/{k}": v for name, s in scores.items() for k, v in s.items()}
        for view in _VIEWS:
            row |= {f"stream/{view}/{k}": v for k, v in mean_rows(views[view]).items()}
        return row

    def summary(self, history: Sequence[Mapping[str, float]], clients: Sequence[str]) -> Any:  # noqa: ANN401 - a nested dict
        """Return what summary.json says of the stream; ``None`` without a schedule.

        For each client its phases, and for each score `ContinualScores`; their means over the
        clients under ``mean``.

        Args:
            history: The metrics of all rounds, with those of `row` where it was called.
            clients: All clients.
        """
        schedule = self._data.schedule
        if schedule is None:
            return None
        said: dict[str, Any] = {}
        for client in clients:
            names = list(dict.fromkeys(phase.name for phase in schedule.phases(client)))
            own: dict[str, dict[str, float]] = {}
            for metric in _METRICS:
                keys = {name: f"clients/{client}/domains/{name}/{metric}" for name in names}
                judged = [row for row in history if any(k in row for k in keys.values())]
                if not judged:
                    continue
                rows = [{n: row[k] for n, k in keys.items() if k in row} for row in judged]
                present = [schedule.phase(client, int(row["round"])).name for row in judged]
                scores = continual_scores(rows, present)._asdict()
                own[metric] = {k: v for k, v in scores.items() if not math.isnan(v)}
            said[client] = {
                "phases": [[phase.start, phase.name] for phase in schedule.phases(client)],
                **own,
            }
        means = {
            metric: mean_rows(said[c][metric] for c in clients if metric in said[c])
            for metric in _METRICS
        }
        return {"clients": said, "mean": {k: v for k, v in means.items() if v}}
