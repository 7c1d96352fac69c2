"""The content of summary.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlecs_lightning.clients.federation import FederationModels
from mlecs_lightning.clients.texts import seen_by
from mlecs_lightning.federated.run import Run
from mlecs_lightning.modules.pocket import is_pocket
from mlecs_lightning.wire.ledger import Ledger

__all__ = ["communication", "summary_of"]


def summary_of(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of summary.json, with the scores of a test."""
    groups = {host: list(c) for host, c in run.federation.parties.groups.items()}
    continual = _continual(run)
    return {
        "algorithm": type(run.algorithm).__name__,
        "seed": run.federation.parties.seed,
        "rounds": len(run.history),
        **results,
        **({"groups": groups} if len(groups) > 1 else {}),
        **({} if continual is None else {"stream": continual}),
        **_validated(run),
        "aggregation_error": [r["aggregate/error"] for r in run.history if "aggregate/error" in r],
        **run.algorithm.summary(run.history),
        **({"privacy": run.accountant.summary()} if run.accountant else {}),
        "faults": {**run.failures.counts(), "events": run.failures.state_dict()},
        "frozen": run.federation.frozen,
        **_pretraining(run),
        "communication": communication(run.ledger, run.federation) | _codec(run),
        "seconds": run.seconds,
    }


def _continual(run: Run) -> dict[str, Any] | None:
    """Return the continual scores; evaluate after the last round if that was not done."""
    rows = list(run.history)
    few = run.evaluator.draws(len(run.federation.evaluated))
    if rows and (few or not any(k.startswith("stream/") for k in rows[-1])):
        last = int(rows[-1]["round"])
        rows[-1] = rows[-1] | run.continual.row(run.evaluator, run.federation, last, everyone=True)
    return run.continual.summary(rows, run.federation.evaluated)


def _validated(run: Run) -> dict[str, Any]:
    """Return how many clients were scored after each validated round, where that is limited."""
    counts = [int(row[key]) for row in run.history if (key := "evaluation/clients") in row]
    return {"validated": counts} if counts else {}


def _pretraining(run: Run) -> dict[str, Any]:
    """Return what the pocket models have seen; nothing where it is what the data set says."""
    parties = run.federation.parties
    settings = [parties.server, *parties.hosts.values(), *parties.models.values()]
    pockets = sorted({s.backbone.model for s in settings if is_pocket(s.backbone.model)})
    seen = {name: about for name in pockets if (about := seen_by(name, run.data))}
    return {"pretraining": seen} if seen else {}


def _codec(run: Run) -> dict[str, Any]:
    """Return the codec's description, and its reconstruction error in each round."""
    if run.channel.codec is None:
        return {}
    lost = {
        way: [row[key] for row in run.history if (key := f"channel/{way}_error") in row]
        for way in ("uplink", "downlink")
    }
    return {"codec": run.channel.codec.describe(), "reconstruction_error": lost}


def communication(ledger: Ledger, federation: FederationModels) -> dict[str, Any]:
    """Return the bytes exchanged, and their ratio to the size of the models.

    The ratios are the bytes per client and round in one direction, divided by the bytes of all
    parameters: of the model that the client trains (mean over clients), and of the server's.
    """
    edges = federation.edge_bytes
    server = federation.server.module.parameter_bytes()
    ratios: dict[str, dict[str, float]] = {"edge": {}, "server": {}}
    for way in ("uplink", "downlink"):
        sent = ledger.mean_sizes(way)
        shares = [sent[c] / size for c, size in edges.items() if c in sent]
        ratios["edge"][way] = sum(shares) / len(shares) if shares else 0.0
        ratios["server"][way] = ledger.per_message(way) / server
    return {
        "uplink_bytes": ledger.total("uplink"),
        "downlink_bytes": ledger.total("downlink"),
        "ratio_of_edge_parameters": ratios["edge"],
        "ratio_of_server_parameters": ratios["server"],
        "edge_parameter_bytes": edges,
        "server_parameter_bytes": server,
        "by_component": ledger.by_component(),
    }
