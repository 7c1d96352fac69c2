"""The final table of a run, in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlecs_lightning.report.labels import NOTHING, SCORES, size
from mlecs_lightning.report.remarks import remarks

__all__ = ["print_summary"]


def _cells(scores: Mapping[str, float], metrics: list[str]) -> list[str]:
    return [f"{scores[m]:.3f}" if m in scores else NOTHING for m in metrics]


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print clients, server, the constant-sentence rows, what went over the wire, and `remarks`.

    Args:
        summary: What `FederatedTrainer.fit` or `test` returned.
        console: Where to; the process's own by default.
    """
    console = console or Console()
    found = {"rouge_lsum", *summary["mean"]["all"], *summary["server"]}  # that one is always asked
    metrics = [m for m in SCORES if m in found]
    table = Table(
        title=f"{summary['algorithm']}, {summary['rounds']} rounds, seed {summary['seed']}: "
        "test, on all domains (on the client's own)"
    )
    # In a narrow terminal names are folded; figures must stay whole.
    table.add_column("party", overflow="fold")
    for metric in metrics:
        table.add_column(SCORES[metric], justify="right", no_wrap=True)
    for name, client in summary["clients"].items():
        party = f"{escape(name)}\n  [dim]{escape(' '.join(client['modalities']))}[/dim]"
        table.add_row(party, *_pairs(client, metrics))
    table.add_section()
    table.add_row("mean of clients", *_pairs(summary["mean"], metrics), style="bold")
    table.add_row("constant sentence", *_pairs(summary["constant"], metrics), style="dim")
    table.add_section()
    table.add_row("server", *_cells(summary["server"], metrics), style="bold")
    table.add_row("constant sentence", *_cells(summary["constant"]["server"], metrics), style="dim")
    console.print(table)
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
        told = ", ".join(f"{n} {kind}" for kind, n in counts.items())
        console.print(f"faults of clients: {told} (reasons: clients/NAME/errors.log)")
    for remark in remarks(summary):
        console.print(f"- {escape(remark)}", highlight=False)
    console.print(f"{summary['seconds']:.1f} s")


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
    for name, client in stream["clients"].items():
        if metric in client:
            order = " ".join(dict.fromkeys(phase for _, phase in client["phases"]))
            party = f"{escape(name)}\n  [dim]{escape(order)}[/dim]"
            table.add_row(party, *_cells(client[metric], list(columns)))
    table.add_section()
    table.add_row("mean of clients", *_cells(stream["mean"][metric], list(columns)), style="bold")
    console.print(table)


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
