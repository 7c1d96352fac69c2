"""Devices with parts of one model (`ECLM`): how large these are, and when they were changed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from mlecs_lightning.report.drawing.charts import Band, Curve, Marks, cells
from mlecs_lightning.report.drawing.series import (
    MOST_CLIENTS,
    logged_clients,
    mean_curve,
    of_metric,
    panels_of,
    spread_note,
)
from mlecs_lightning.report.labels import size
from mlecs_lightning.report.parts import Cell, Column, Grid, Group, Panel, Section, Setting
from mlecs_lightning.report.results.reading import Run
from mlecs_lightning.report.results.rows import number_at
from mlecs_lightning.report.sections.continual import bands_of, stretches

__all__ = ["devices"]

_NONE = "-"
_SIZE, _ALARM, _DERIVED = range(3)  # styles
_LEGEND = ((_SIZE, "modules"), (_ALARM, "drift found"), (_DERIVED, "sub-model derived"))


def devices(setting: Setting, *, charts: bool = True) -> list[Section]:
    """Show the sub-models of devices, if any run has them.

    Args:
        setting: Runs of one setting.
        charts: Whether to draw; if not, the modules are shown as a table.
    """
    found = _found(setting)
    if not found:
        return []
    several = len({group.label for group, _ in found}) > 1
    named = {f"{group.label}: {name}" if several else name: (group, name) for group, name in found}
    sections = [_table(named)]
    if charts:
        sections.append(_sizes(setting, named))
    masks = {
        caption: mask for caption, (group, name) in named.items() if (mask := _mask(group, name))
    }
    if masks:
        sections.append(_choice(masks, charts=charts))
    return sections


def _found(setting: Setting) -> list[tuple[Group, str]]:
    """Return which devices of which algorithms have a sub-model."""
    return [
        (group, name)
        for group in setting.groups
        for name in logged_clients(group.runs, "submodel/modules")
    ]


# The table ----------------------------------------------------------------------------------------


def _table(named: Mapping[str, tuple[Group, str]]) -> Section:
    names = ("device", "budget", "modules", "parameters", "bytes", "whole model", "drift found")
    columns = [Column(name, text=name in ("device", "budget")) for name in names]
    columns.append(Column("derived"))
    lines = []
    for caption, (group, name) in named.items():
        lines.append(
            [
                Cell(caption),
                Cell(_budget(group.runs[-1], name)),
                Cell(_of(_last(group, f"clients/{name}/submodel/modules"), _places(group, name))),
                Cell(_count(_last(group, f"clients/{name}/submodel/parameters"))),
                Cell(_size(_last(group, f"clients/{name}/submodel/bytes"))),
                Cell(_size(_whole(group, name))),
                Cell(_told(group, f"clients/{name}/drifted")),
                Cell(_told(group, f"server/derived/{name}")),
            ]
        )
    note = (
        "The part of the model that each device has after the last round, frozen weights included; "
        "means over the seeds. whole model: what all modules would weigh. drift found: rounds in "
        "which the device's test on its gates said so; derived: rounds after which the cloud chose "
        "a sub-model for it. Rounds count from 1."
    )
    return Section("Sub-models of the devices", note, grids=[Grid(columns, lines)])


def _budget(run: Run, client: str) -> str:
    """Return what a device may spend, with the factor of the last round."""
    algorithm = run.config.get("algorithm")
    options = algorithm.get("init_args") if isinstance(algorithm, dict) else None
    if not isinstance(options, dict):
        return _NONE
    own = options.get("budgets")
    budget: Any = (own.get(client) if isinstance(own, dict) else None) or options.get("budget")
    limits = {k: v for k, v in budget.items() if v is not None} if isinstance(budget, dict) else {}
    text = ", ".join(f"{key} {limit}" for key, limit in limits.items()) or "no limit"
    key = f"clients/{client}/budget"
    factors = [at[key] for at in run.history if key in at]
    return f"{text}; at the end {factors[-1]:g} of it" if factors and factors[-1] != 1 else text


def _last(group: Group, key: str) -> float | None:
    ends = [values[-1] for run in group.runs if (values := [v for _, _, v in of_metric(key)(run)])]
    return fmean(ends) if ends else None


def _places(group: Group, client: str) -> int | None:
    mask = _mask(group, client)
    return len(mask) * len(mask[0]) if mask else None


def _whole(group: Group, client: str) -> float | None:
    found = [
        number_at(run.summary, "communication", "edge_parameter_bytes", client)
        for run in group.runs
    ]
    known = [each for each in found if each is not None]
    return fmean(known) if known else None


def _of(number: float | None, places: int | None) -> str:
    if number is None:
        return _NONE
    return f"{number:g} of {places}" if places else f"{number:g}"


def _count(number: float | None) -> str:
    return _NONE if number is None else f"{number:,.0f}"


def _size(number: float | None) -> str:
    return _NONE if number is None else size(number)


def _rounds(runs: Iterable[Run], key: str) -> dict[int, int]:
    """Return in which rounds something happened, and in how many runs."""
    found: dict[int, int] = {}
    for run in runs:
        for at in run.history:
            if at.get(key):
                found[int(at["step"])] = found.get(int(at["step"]), 0) + 1
    return dict(sorted(found.items()))


def _told(group: Group, key: str) -> str:
    if not any(key in at for run in group.runs for at in run.history):
        return _NONE
    of = len(group.runs)
    rounds = _rounds(group.runs, key)
    return ", ".join(f"{r}" if n == of else f"{r} ({n}/{of})" for r, n in rounds.items()) or "never"


# Over the rounds ----------------------------------------------------------------------------------


def _sizes(setting: Setting, named: Mapping[str, tuple[Group, str]]) -> Section:
    known = stretches(setting)
    drawn: dict[str, list[Curve]] = {}
    bands: dict[str, list[Band]] = {}
    marks: dict[str, list[Marks]] = {}
    for label, (group, name) in list(named.items())[:MOST_CLIENTS]:
        own = known.get(name, [])
        caption = f"{label}: {', '.join(f'{s.name} ({s.first})' for s in own)}" if own else label
        curve = mean_curve(group, of_metric(f"clients/{name}/submodel/modules"), _SIZE)
        drawn[caption] = [curve] if curve else []
        bands[caption] = bands_of(own)
        events = {_ALARM: f"clients/{name}/drifted", _DERIVED: f"server/derived/{name}"}
        marks[caption] = [
            Marks(style, list(_rounds(group.runs, key))) for style, key in events.items()
        ]
    few = f" {MOST_CLIENTS} of {len(named)} are shown." if len(named) > MOST_CLIENTS else ""
    note = (
        "Modules that a device has in each round. A dashed line: its data or its budget change; a "
        "caption says in which rounds. Marks at the foot: a device has found its data to have "
        "drifted, the cloud has derived a new sub-model for it, which it gets in the next round."
        f"{spread_note(setting)}{few}"
    )
    panels = panels_of(drawn, from_zero=True, bands=bands, marks=marks)
    return Section("Size of the sub-models over rounds", note, _LEGEND, panels)


# Which modules ------------------------------------------------------------------------------------


def _mask(group: Group, client: str) -> list[list[float]] | None:
    """Return for each layer and module in what share of the runs a device has it."""
    masks = [run.modules[client] for run in group.runs if client in run.modules]
    if len({(len(mask), len(mask[0])) for mask in masks}) != 1:
        return None
    return [
        [math.fsum(each) / len(masks) for each in zip(*rows, strict=True)]
        for rows in zip(*masks, strict=True)
    ]


def _choice(masks: Mapping[str, Sequence[Sequence[float]]], *, charts: bool) -> Section:
    note = "Which modules of each layer a device has at the end"
    if charts:
        shown = list(masks.items())[:MOST_CLIENTS]
        few = f" {len(shown)} of {len(masks)} are shown." if len(masks) > len(shown) else ""
        panels = [Panel(label, cells(mask, x="module", y="layer")) for label, mask in shown]
        return Section("Choice of modules", f"{note}; paler: not with all seeds.{few}", (), panels)
    depth = max(len(mask) for mask in masks.values())
    columns = [Column("device", text=True)]
    columns += [Column(f"layer {n}", text=True) for n in range(1, depth + 1)]
    lines = [
        [Cell(label), *(Cell("".join(map(_sign, row))) for row in mask)]
        + [Cell(_NONE)] * (depth - len(mask))
        for label, mask in masks.items()
    ]
    note += ", module by module: ● with all seeds, ○ with some, · with none."
    return Section("Choice of modules", note, grids=[Grid(columns, lines)])


def _sign(share: float) -> str:
    return "●" if share == 1 else "○" if share else "·"
