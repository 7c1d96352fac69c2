"""What summary.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlecs_lightning.clients.federation import Federation
from mlecs_lightning.federated.run import Run
from mlecs_lightning.wire.ledger import Ledger

__all__ = ["communication", "summary_of"]


def summary_of(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what summary.json holds, with the scores of an evaluation."""
    groups = {host: list(c) for host, c in run.federation.parties.groups.items()}
    streamed = _streamed(run)
    return {
        "algorithm": type(run.algorithm).__name__,
        "seed": run.federation.parties.seed,
        "rounds": len(run.history),
        **results,
        **({"groups": groups} if len(groups) > 1 else {}),
        **({} if streamed is None else {"stream": streamed}),
        "aggregation_error": [r["aggregate/error"] for r in run.history if "aggregate/error" in r],
        "faults": {**run.faults.counts(), "events": run.faults.state_dict()},
        "frozen": run.federation.frozen,
        "communication": communication(run.ledger, run.federation) | _coded(run),
        "seconds": run.seconds,
    }


def _streamed(run: Run) -> Any:  # noqa: ANN401 - a nested dict
    """Judge the clients after the last round, if that has not been done, and sum up."""
    rows = list(run.history)
    if rows and not any(k.startswith("stream/") for k in rows[-1]):
        last = int(rows[-1]["round"])
        rows[-1] = rows[-1] | run.stream.row(run.evaluator, run.federation, last)
    return run.stream.summary(rows, run.federation.clients)


def _coded(run: Run) -> dict[str, Any]:
    """Return what the codec is, and what it lost in each round."""
    if run.channel.codec is None:
        return {}
    lost = {
        way: [row[key] for row in run.history if (key := f"channel/{way}_error") in row]
        for way in ("uplink", "downlink")
    }
    return {"codec": run.channel.codec.describe(), "reconstruction_error": lost}


def communication(ledger: Ledger, federation: Federation) -> dict[str, Any]:
    """Return the bytes that crossed the border and what share of the models they are.

    The ratios are the bytes of one client's round, one way, over the bytes of all parameters: of
    the model that the client trains (mean over clients), and of the server's.
    """
    edges = federation.edge_bytes
    server = federation.server.module.parameter_bytes()
    ratios: dict[str, dict[str, float]] = {"edge": {}, "server": {}}
    for way in ("uplink", "downlink"):
        shares = [
            ledger.total(way, client=c) / messages / size
            for c, size in edges.items()
            if (messages := ledger.messages(way, client=c))
        ]
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
