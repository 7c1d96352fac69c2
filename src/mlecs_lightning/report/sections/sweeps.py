"""Quality against a setting: what comes of the runs that differ in one number alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mlecs_lightning.report.drawing.charts import Curve, limits_of, steps
from mlecs_lightning.report.drawing.series import described
from mlecs_lightning.report.labels import VIEWS, heading, seeds
from mlecs_lightning.report.parts import Cell, Column, Grid, Panel, Section, Setting
from mlecs_lightning.report.results.configs import flat, told_apart
from mlecs_lightning.report.results.matrix import Entry, cell, table, value
from mlecs_lightning.report.results.rows import Row

__all__ = ["Sweep", "find_sweeps", "sweeps"]

_BYTES = ("communication.uplink_bytes", "communication.downlink_bytes")


class Sweep(NamedTuple):
    """Algorithms that are one but for a number in their configuration.

    Attributes:
        key: Which, with its dots.
        label: What tells them apart from those that another sweep of this key goes over.
        at: The label of the algorithm at each value, ascending.
    """

    key: str
    label: str
    at: Mapping[float, str]


def find_sweeps(setting: Setting) -> list[Sweep]:
    """Return the sweeps over at least two values, by key.

    The seed and what changes no result may differ, too: see `report.results.configs`.
    """
    done = {row.algorithm for row in setting.rows}
    configs = {
        group.label: flat(group.runs[0].config)
        for group in setting.groups
        if group.label in done and group.runs[0].config
    }
    keys = dict.fromkeys(key for leaves in configs.values() for key in leaves)
    found: list[Sweep] = []
    for key in keys:
        lines: dict[str, dict[float, str]] = {}
        rests: dict[str, dict[str, str]] = {}
        for label, leaves in configs.items():
            number = _number(leaves.get(key))
            if number is not None:
                rest = {k: v for k, v in leaves.items() if k != key}
                same = json.dumps(rest, sort_keys=True)
                rests[same] = rest
                lines.setdefault(same, {})[number] = label
        several = {same: at for same, at in lines.items() if len(at) > 1}
        bases = [next(iter(at.values())).partition(":")[0] for at in several.values()]
        labels = told_apart(bases, [rests[same] for same in several], first_too=True)
        found += [
            Sweep(key, label, dict(sorted(at.items())))
            for label, at in zip(labels, several.values(), strict=True)
        ]
    return found


def _number(leaf: str | None) -> float | None:
    """Return a leaf as a number; ``None`` if it is none."""
    content = None if leaf is None else json.loads(leaf)
    number = isinstance(content, (int, float)) and not isinstance(content, bool)
    return float(content) if number else None  # type: ignore[arg-type]


def sweeps(setting: Setting, *, charts: bool = True) -> list[Section]:
    """Show score and bytes against every number in which the runs differ.

    Args:
        setting: Runs of one setting.
        charts: Whether to draw.
    """
    by_key: dict[str, list[Sweep]] = {}
    for sweep in find_sweeps(setting):
        by_key.setdefault(sweep.key, []).append(sweep)
    metrics = _metrics(setting)
    entries = {entry.algorithm: entry for entry in table(setting.rows, list(metrics))}
    return [
        Section(
            f"Quality against {_short(key)}",
            f"Runs that differ in {key} alone, and in the seed. Lines are means over the seeds, "
            "dots single runs. The y axis of the score does not begin at zero."
            if charts
            else f"Runs that differ in {key} alone, and in the seed.",
            [(style, sweep.label) for style, sweep in enumerate(found)]
            if charts and len(found) > 1
            else (),
            list(_panels(setting, found, entries, metrics)) if charts else (),
            [_grid(found, entries, metrics)],
        )
        for key, found in by_key.items()
    ]


def _short(key: str) -> str:
    """Return a key without what all keys of a class have."""
    return ".".join(part for part in key.split(".")[1:] if part != "init_args") or key


def _metrics(setting: Setting) -> dict[str, str]:
    """Return scores and bytes that the runs have, with what to call them."""
    main, name = setting.main, setting.main_name
    if any(row.summary.get("stream") for row in setting.rows):
        # As in `mlecs_lightning.report.sections.continual`.
        names = {
            f"stream.mean.{main}.present": f"{name}, present",
            f"mean.own.{main}": f"{name}, whole",
        }
    else:
        names = {f"{v}.{main}": f"{name}, {VIEWS[v]}" for v in ("mean.all", "mean.own", "server")}
    names |= {way: heading(way) for way in _BYTES}
    return {
        metric: name
        for metric, name in names.items()
        if any(value(row, metric) for row in setting.rows)
    }


def _grid(found: Sequence[Sweep], entries: Mapping[str, Entry], metrics: Mapping[str, str]) -> Grid:
    several = len(found) > 1
    columns = [Column(_short(found[0].key)), Column("seeds"), *map(Column, metrics.values())]
    rows = []
    for sweep in found:
        for number, label in sweep.at.items():
            entry = entries[label]
            count = len(entry.seeds)
            line = [Cell(f"{number:g}"), Cell(seeds(count))]
            line += [Cell(cell(m, entry.stats[m], n=count)) for m in metrics]
            rows.append([Cell(sweep.label), *line] if several else line)
    return Grid([Column("runs", text=True), *columns] if several else columns, rows)


def _panels(
    setting: Setting,
    found: Sequence[Sweep],
    entries: Mapping[str, Entry],
    metrics: Mapping[str, str],
) -> Iterator[Panel]:
    drawn = {
        metric: [
            curve
            for style, sweep in enumerate(found)
            if (curve := _curve(setting.rows, sweep, style, entries, metric))
        ]
        for metric in metrics
    }
    scores = [y for m, series in drawn.items() if m not in _BYTES for y in _heights(series)]
    for metric, name in metrics.items():
        series, in_bytes = drawn[metric], metric in _BYTES
        if series:
            limits = (0.0, 1.06 * max(_heights(series))) if in_bytes else limits_of(scores)
            chart = steps(series, limits=limits, in_bytes=in_bytes)
            yield Panel(name, chart, described(series))


def _heights(series: Sequence[Curve]) -> list[float]:
    return [y for each in series for y in (*each.y, *(dot for _, dot in each.dots))]


def _curve(
    rows: Sequence[Row], sweep: Sweep, style: int, entries: Mapping[str, Entry], metric: str
) -> Curve | None:
    at = {
        number: stat.mean
        for number, label in sweep.at.items()
        if (stat := entries[label].stats[metric]) is not None
    }
    if len(at) < 2:
        return None
    dots = [
        (number, y)
        for number in at
        for row in rows
        if row.algorithm == sweep.at[number] and (y := value(row, metric)) is not None
    ]
    return Curve(style, list(at), list(at.values()), [0.0] * len(at), dots)
