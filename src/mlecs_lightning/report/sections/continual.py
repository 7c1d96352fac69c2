"""Clients whose data change from round to round: how they do where they are, and elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

from mlecs_lightning.report.drawing.charts import Band, Curve
from mlecs_lightning.report.drawing.series import (
    MOST_CLIENTS,
    all_curves,
    legend,
    logged_clients,
    mean_curve,
    of_metric,
    panels_of,
    spread_note,
)
from mlecs_lightning.report.labels import NOTHING, SCORES, heading, seeds
from mlecs_lightning.report.parts import Cell, Column, Grid, Group, Panel, Section, Setting
from mlecs_lightning.report.results.budget import MARKED
from mlecs_lightning.report.results.matrix import Entry, best, cell, table, unmatched, value
from mlecs_lightning.report.results.rows import Row

__all__ = ["Stretch", "bands_of", "continual", "stretches"]

_MEASURES = {
    "present": "present",
    "final": "final",
    "forgetting": "forgetting",
    "backward_transfer": "backward transfer",
}
_BYTES = ("communication.uplink_bytes", "communication.downlink_bytes")


class Stretch(NamedTuple):
    """Rounds in which the data of a client stay as they are.

    Attributes:
        first: The first round, from 1.
        last: The last round.
        name: The domain.
    """

    first: int
    last: int
    name: str


def stretches(setting: Setting) -> dict[str, list[Stretch]]:
    """Return the stretches of each client, up to the last round of the longest run.

    The runs have the same data, so that any summary will do; without one there are none.
    """
    rounds = max((run.rounds for run in setting.runs), default=0)
    found: dict[str, list[Stretch]] = {}
    for run in setting.runs:
        clients: Mapping[str, Any] = (run.summary or {}).get("stream", {}).get("clients", {})
        for client, said in clients.items():
            starts = [(start, name) for start, name in said["phases"]]
            ends = [start for start, _ in starts[1:]] + [rounds]
            found.setdefault(
                client,
                [
                    Stretch(start + 1, min(end, rounds), name)
                    for (start, name), end in zip(starts, ends, strict=True)
                    if start < rounds
                ],
            )
    return found


def bands_of(own: Sequence[Stretch], styles: Mapping[str, int] | None = None) -> list[Band]:
    """Return stretches as bands of a chart: every other one grey, or in the colours of domains."""
    if styles is not None:
        return [Band(each.first, each.last, styles.get(each.name)) for each in own]
    return [Band(each.first, each.last) for each in own] if len(own) > 1 else []


def continual(setting: Setting, *, charts: bool = True) -> list[Section]:
    """Show how clients did on their present domain, and on those that they have left.

    Args:
        setting: Runs of one setting.
        charts: Whether to draw.
    """
    score = _score(setting)
    if score is None:
        return []
    known = stretches(setting)
    found = [
        _summary(setting, score, known),
        _present(setting, score, known) if charts else None,
        _every(setting, score, known, charts=charts),
    ]
    return [section for section in found if section]


def _score(setting: Setting) -> str | None:
    for score in (setting.main, *SCORES):
        in_summary = any(
            value(row, f"stream.mean.{score}.present") is not None for row in setting.rows
        )
        key = f"stream/present/{score}"
        if in_summary or any(key in at for run in setting.runs for at in run.history):
            return score
    return None


def _name(score: str) -> str:
    return SCORES.get(score, score)


def _order(own: Sequence[Stretch]) -> str:
    """Return the domains of a client with their first rounds."""
    return ", ".join(f"{each.name} ({each.first})" for each in own)


# The summary --------------------------------------------------------------------------------------


def _summary(
    setting: Setting, score: str, known: Mapping[str, Sequence[Stretch]]
) -> Section | None:
    rows = [row for row in setting.rows if row.summary.get("stream")]
    if not rows:
        return None
    labels = [group.label for group in setting.groups]
    means = _lines(rows, score, labels, extra=_BYTES)
    names = list(known)[:MOST_CLIENTS]
    columns = [Column("algorithm", text=True), Column("seeds")]
    measures = [*(Column(name, _name(score)) for name in _MEASURES.values())]
    measures.append(Column("whole", _name(score)))
    ways = [Column(heading(way).split()[-1], "bytes") for way in _BYTES]
    caption = "Mean of the clients" if len(names) > 1 else ""
    grids = [Grid([*columns, *measures, *ways], means, caption=caption)]
    if len(names) > 1:
        lines = [
            [Cell(name), Cell(_order(known[name])), *line]
            for name in names
            for line in _lines([_of_client(row, name) for row in rows], score, labels)
        ]
        head = [Column("client", text=True), Column("domains (from round)", text=True)]
        few = f": {len(names)} of {len(known)}" if len(known) > len(names) else ""
        grids.append(Grid([*head, *columns, *measures], lines, caption=f"By client{few}"))
    note = (
        "A domain is what a client's data are during some rounds; all scores are on its own test "
        "split. present: mean, over the stretches of rounds, of the score on the domain of each at "
        "its end. final: mean over all domains after the last round. forgetting: the best score on "
        "a domain since it was met minus the last one, backward transfer: the last one minus that "
        "at the end of its last stretch; means over the domains that were left. whole: all own "
        "test samples at the end."
    )
    if len(names) == 1:  # a caption would not be folded where the page is narrow
        note += f" The domains of {names[0]}, with their first rounds: {_order(known[names[0]])}."
    entries = _entries(rows, score, labels)
    if any(each.best for grid in grids for line in grid.rows for each in line):
        note += f" {MARKED} Of forgetting and bytes it is the least."
    if alone := unmatched(entries):
        note += f" {alone}"
    return Section(f"Changing data: {_name(score)}", note, grids=grids)


def _lines(
    rows: Sequence[Row], score: str, labels: Sequence[str], extra: Sequence[str] = ()
) -> list[list[Cell]]:
    entries = _entries(rows, score, labels, extra)
    metrics = [*entries[0].stats] if entries else []
    marked = {metric: best(entries, metric) for metric in metrics}
    return [
        [
            Cell(entry.algorithm),
            Cell(seeds(len(entry.seeds))),
            *(Cell(cell(m, entry.stats[m], n=len(entry.seeds)), i in marked[m]) for m in metrics),
        ]
        for i, entry in enumerate(entries)
    ]


def _entries(
    rows: Sequence[Row], score: str, labels: Sequence[str], extra: Sequence[str] = ()
) -> list[Entry]:
    metrics = [f"stream.mean.{score}.{name}" for name in _MEASURES]
    return table(rows, [*metrics, f"mean.own.{score}", *extra], order=labels)


def _of_client(row: Row, client: str) -> Row:
    """Return a run in which one client stands for the mean of all."""
    streamed = row.summary["stream"].get("clients", {}).get(client, {})
    own = row.summary.get("clients", {}).get(client, {}).get("own", {})
    means = {"stream": {"mean": streamed}, "mean": {"own": own}}
    kept = {key: row.summary[key] for key in ("algorithm", "communication") if key in row.summary}
    return replace(row, summary={**kept, **means})


# Over the rounds ----------------------------------------------------------------------------------


def _present(
    setting: Setting, score: str, known: Mapping[str, Sequence[Stretch]]
) -> Section | None:
    names = logged_clients(setting.runs, "stream/present/[^/]+")
    drawn: dict[str, list[Curve]] = {}
    bands: dict[str, list[Band]] = {}
    if len(names) > 1:
        drawn["mean of the clients"] = all_curves(setting, of_metric(f"stream/present/{score}"))
    for name in names[:MOST_CLIENTS]:
        own = known.get(name, ())
        caption = f"{name}: {_order(own)}" if own else name
        drawn[caption] = all_curves(setting, of_metric(f"clients/{name}/stream/present/{score}"))
        bands[caption] = bands_of(own)
    panels = panels_of(drawn, floor=0.0, bands=bands)
    if not panels:
        return None
    few = f" {MOST_CLIENTS} of {len(names)} clients are shown." if len(names) > MOST_CLIENTS else ""
    note = (
        f"{_name(score)} of each client on the domain of the round. A dashed line is the border "
        f"of two domains; a caption says in which round each begins.{spread_note(setting)}{few}"
    )
    title = f"Where the client is: {_name(score)} over rounds"
    return Section(title, note, legend(setting, drawn.values()), panels)


def _every(
    setting: Setting, score: str, known: Mapping[str, Sequence[Stretch]], *, charts: bool
) -> Section | None:
    """Show every domain over the rounds, and as a table at the end of each stretch."""
    domains = {
        name: found
        for name, own in known.items()
        if len(found := list(dict.fromkeys(each.name for each in own))) > 1
    }
    domains = {name: domains[name] for name in list(domains)[:MOST_CLIENTS]}
    order = dict.fromkeys(domain for found in domains.values() for domain in found)
    styles = {domain: style for style, domain in enumerate(order)}
    panels, shown = _domain_charts(setting, score, known, domains, styles) if charts else ([], 0)
    grid = _ends_of_stretches(setting, score, {name: known[name] for name in domains}, list(order))
    if not grid and not panels:
        return None
    note = f"{_name(score)} on every domain, whichever is present."
    if panels:
        note += f" The background has the colour of the present one.{spread_note(setting)}"
    possible = len(domains) * len(setting.groups)
    if charts and shown < possible:
        note += f" {shown} of {possible} charts are shown."
    styled = [(style, domain) for domain, style in styles.items()] if panels else []
    title = f"On every domain: {_name(score)}"
    return Section(title, note, styled, panels, [grid] if grid else [])


def _domain_charts(
    setting: Setting,
    score: str,
    known: Mapping[str, Sequence[Stretch]],
    domains: Mapping[str, Sequence[str]],
    styles: Mapping[str, int],
) -> tuple[list[Panel], int]:
    """Return a chart for each algorithm and client, up to a limit, and how many were asked for."""
    drawn: dict[str, list[Curve]] = {}
    bands: dict[str, list[Band]] = {}
    for group in setting.groups:
        for name, own in domains.items():
            if len(drawn) == MOST_CLIENTS:
                break
            caption = f"{group.label}: {name}" if len(setting.groups) > 1 else name
            series = [
                mean_curve(group, of_metric(_key(name, domain, score)), styles[domain])
                for domain in own
            ]
            drawn[caption] = [each for each in series if each]
            bands[caption] = bands_of(known[name], styles)
    return panels_of(drawn, floor=0.0, bands=bands), len(drawn)


def _ends_of_stretches(
    setting: Setting, score: str, known: Mapping[str, Sequence[Stretch]], order: Sequence[str]
) -> Grid | None:
    """Return the scores on all domains at the end of each stretch, if any was logged."""
    lines = []
    for name, own in known.items():
        for each in own:
            line = [Cell(f"{name}, {_rounds(each)}: {each.name}")]
            for group in setting.groups:
                line += [_end(group, _key(name, domain, score), each) for domain in order]
            lines.append(line)
    if not any(each.shade is not None for line in lines for each in line):
        return None
    columns = [Column("after", text=True)]
    for group in setting.groups:
        over = group.label if len(setting.groups) > 1 else "on"
        columns += [Column(domain, over) for domain in order]
    return Grid(columns, lines, caption="At the end of each stretch")


def _key(client: str, domain: str, score: str) -> str:
    return f"clients/{client}/domains/{domain}/{score}"


def _rounds(each: Stretch) -> str:
    if each.first == each.last:
        return f"round {each.first}"
    return f"rounds {each.first} to {each.last}"


def _end(group: Group, key: str, each: Stretch) -> Cell:
    """Return the last score of a stretch, mean over the runs that have one."""
    found = []
    for run in group.runs:
        within = [
            at[key] for at in run.history if key in at and each.first <= at["step"] <= each.last
        ]
        found += within[-1:]
    return Cell(f"{fmean(found):.3f}", shade=fmean(found)) if found else Cell(NOTHING)
