"""The final table of a run, in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlecs_lightning.report.labels import NOTHING, SCORES, size
from mlecs_lightning.report.many import MOST_ROWS, Ends, ends_of, quantiles_of
from mlecs_lightning.report.remarks import remarks

__all__ = ["print_summary", "print_validation"]

# Shown where a run has no other score.
_NAMES = {**SCORES, "exact_match": "exact match"}
# The score that orders many clients: the first that there is.
_ORDERED_BY = ("macro_f1", "rouge_lsum", "accuracy")


def _cells(scores: Mapping[str, float], metrics: list[str]) -> list[str]:
    return [f"{scores[m]:.3f}" if m in scores else NOTHING for m in metrics]


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the scores of all parties, the bytes that were sent, and `remarks`.

    Of more than 20 clients the table shows quantiles, and the five lowest and highest.

    Args:
        summary: What `FederatedTrainer.fit` or `test` returned.
        console: Where to; the process's own by default.
    """
    console = console or Console()
    # ROUGE-Lsum is asked of every run, unless the run says that it was left out.
    found = {"rouge_lsum", *summary["mean"]["all"], *summary["server"]}
    found -= set(summary.get("left_out", ()))
    metrics = [m for m in SCORES if m in found] or ["exact_match"]
    table = Table(
        title=f"{summary['algorithm']}, {summary['rounds']} rounds, seed {summary['seed']}: "
        "test, on all domains (on the client's own)"
    )
    # In a narrow terminal names are folded; figures must stay whole.
    table.add_column("party", overflow="fold")
    for metric in metrics:
        table.add_column(_NAMES[metric], justify="right", no_wrap=True)
    clients = summary["clients"]
    by = next((m for m in _ORDERED_BY if m in metrics), metrics[0])
    told = {name: " ".join(client["modalities"]) for name, client in clients.items()}
    rows = {name: _pairs(client, metrics) for name, client in clients.items()}
    ends = ends_of({name: client["all"].get(by) for name, client in clients.items()})
    _add_clients(table, told, rows, ends)
    if len(clients) > MOST_ROWS:
        _add_quantiles(table, clients, metrics)
    table.add_row("mean of clients", *_pairs(summary["mean"], metrics), style="bold")
    table.add_row("constant sentence", *_pairs(summary["constant"], metrics), style="dim")
    table.add_section()
    table.add_row("server", *_cells(summary["server"], metrics), style="bold")
    table.add_row("constant sentence", *_cells(summary["constant"]["server"], metrics), style="dim")
    console.print(table)
    if len(clients) > MOST_ROWS:
        console.print(_shortened(len(clients), ends, _NAMES[by]), highlight=False)
    if "bertscore_unknown" in summary:
        console.print(
            f"BERTScore: its tokenizer does not know {summary['bertscore_unknown']:.1%} of the "
            "tokens of the test targets"
        )
    _print_stream(summary.get("stream"), console)
    _print_communication(summary["communication"], console)
    _print_privacy(summary.get("privacy"), console)
    counts = {k: n for k, n in summary["faults"].items() if k != "events" and n}
    if counts:
        kinds = ", ".join(f"{n} {kind}" for kind, n in counts.items())
        console.print(f"faults of clients: {kinds} (reasons: clients/NAME/errors.log)")
    for remark in remarks(summary):
        console.print(f"- {escape(remark)}", highlight=False)
    console.print(f"{summary['seconds']:.1f} s")


def print_validation(values: Mapping[str, float], console: Console | None = None) -> None:
    """Print the losses and scores of a validation, as `print_summary` prints those of a test.

    Of more than 20 clients the table shows the five with the lowest loss and the five with the
    highest.

    Args:
        values: What `FederatedTrainer.validate` returned.
        console: Where to; the process's own by default.
    """
    console = console or Console()
    rows: dict[str, dict[str, float]] = {}
    for key, value in values.items():
        party, _, name = key.rpartition("/val/")
        rows.setdefault(party, {})[name] = value
    columns = {"loss": "loss", **SCORES}
    shown = [name for name in columns if any(name in row for row in rows.values())]
    table = Table(title="validation")
    table.add_column("party", overflow="fold")
    for name in shown:
        table.add_column(columns[name], justify="right", no_wrap=True)
    mean, server = rows.pop("clients", {}), rows.pop("server", {})
    clients = {party.removeprefix("clients/"): row for party, row in rows.items()}
    ends = ends_of({name: row.get("loss") for name, row in clients.items()})
    all_of_them = len(clients) <= MOST_ROWS
    for names in [list(clients)] if all_of_them else [list(ends.worst), list(reversed(ends.best))]:
        for name in names:
            table.add_row(escape(name), *_cells(clients[name], shown))
        table.add_section()
    table.add_row("mean of clients", *_cells(mean, shown), style="bold")
    table.add_row("server", *_cells(server, shown), style="bold")
    console.print(table)
    if not all_of_them:
        console.print(f"{len(clients):,} clients: the lowest and the highest by loss")


def _add_clients(
    table: Table, told: Mapping[str, str], rows: Mapping[str, list[str]], ends: Ends
) -> None:
    """Add a row for each client, or for those at both ends if there are many."""
    if len(rows) <= MOST_ROWS:
        groups = [list(rows)]
    else:
        groups = [list(ends.worst), list(reversed(ends.best))]
    for names in groups:
        for name in names:
            party = f"{escape(name)}\n  [dim]{escape(told[name])}[/dim]"
            table.add_row(party, *rows[name])
        table.add_section()


def _add_quantiles(
    table: Table, clients: Mapping[str, Mapping[str, Any]], metrics: list[str]
) -> None:
    """Add the quantiles over the clients, each column on its own."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for view in ("all", "own"):
        for metric in metrics:
            scores = [c[view][metric] for c in clients.values() if metric in c[view]]
            for name, score in quantiles_of(scores).items():
                found.setdefault(name, {"all": {}, "own": {}})[view][metric] = score
    for name, views in found.items():
        table.add_row(name, *_pairs(views, metrics))


def _shortened(count: int, ends: Ends, metric: str) -> str:
    """Return the line below a table that does not show all clients."""
    text = (
        f"{count:,} clients: the {len(ends.worst)} lowest and {len(ends.best)} highest by "
        f"{metric}, summary.json has all"
    )
    return f"{text}. Without a score: {ends.unscored:,}" if ends.unscored else text


def _print_stream(stream: Mapping[str, Any] | None, console: Console) -> None:
    """Print how the clients did on a stream of domains, by the first score that there is."""
    if stream is None or not stream["mean"]:
        return
    metric = next(m for m in SCORES if m in stream["mean"])
    metric = "macro_f1" if "macro_f1" in stream["mean"] else metric
    columns = ("present", "final", "forgetting", "backward_transfer")
    table = Table(title=f"stream of domains: {SCORES[metric]}")
    table.add_column("party", overflow="fold")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right", no_wrap=True)
    clients = {name: client for name, client in stream["clients"].items() if metric in client}
    told = {
        name: " ".join(dict.fromkeys(phase for _, phase in client["phases"]))
        for name, client in clients.items()
    }
    rows = {name: _cells(client[metric], list(columns)) for name, client in clients.items()}
    ends = ends_of({name: client[metric].get("present") for name, client in clients.items()})
    _add_clients(table, told, rows, ends)
    table.add_row("mean of clients", *_cells(stream["mean"][metric], list(columns)), style="bold")
    console.print(table)
    if len(clients) > MOST_ROWS:
        console.print(_shortened(len(clients), ends, "present"), highlight=False)


def _pairs(views: Mapping[str, Any], metrics: list[str]) -> list[str]:
    both = zip(_cells(views["all"], metrics), _cells(views["own"], metrics), strict=True)
    return [f"{everywhere} ({own})" for everywhere, own in both]


def _print_communication(wire: Mapping[str, Any], console: Console) -> None:
    if not wire["uplink_bytes"] and not wire["downlink_bytes"]:
        console.print("communication: none")
        return
    table = Table(title="communication")
    table.add_column("direction")
    table.add_column("bytes", justify="right")
    table.add_column("of it")
    table.add_column("/ client", justify="right")
    table.add_column("/ server", justify="right")
    for way in ("uplink", "downlink"):
        parts = ", ".join(f"{k} {size(v)}" for k, v in wire["by_component"][way].items())
        table.add_row(
            way,
            size(wire[f"{way}_bytes"]),
            parts,
            f"{wire['ratio_of_edge_parameters'][way]:.2%}",
            f"{wire['ratio_of_server_parameters'][way]:.2%}",
        )
    console.print(table)
    if lost := wire.get("reconstruction_error"):
        means = [f"{way} {sum(v) / len(v):.2f}" for way, v in lost.items() if v]
        console.print(
            f"codec {wire['codec']['class_path']}: of an update is left out for the next, mean of "
            f"rounds: {', '.join(means)}"
        )
    edges = wire["edge_parameter_bytes"].values()
    span = size(min(edges)) if len(set(edges)) == 1 else f"{size(min(edges))} to {size(max(edges))}"
    console.print(
        f"ratios: one client's round over all parameters of its model ({span}) and of the server's "
        f"models ({size(wire['server_parameter_bytes'])})"
    )


def _print_privacy(privacy: Mapping[str, Any] | None, console: Console) -> None:
    """Print the privacy loss, if one was counted."""
    if privacy is None:
        return
    against = {"epsilon": "the models", "epsilon_server": "the server"}
    told = [f"{privacy[k]:.3g} against {who}" for k, who in against.items() if k in privacy]
    console.print(f"privacy: epsilon {', '.join(told)} at delta {privacy['delta']:g}")
