"""ECLM in the report: the sub-models of the devices, and when they were changed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

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
from mlecs_lightning.report.results.reading import ReportError, Run, read_mapping
from mlecs_lightning.report.results.rows import number_at
from mlecs_lightning.report.sections.continual import bands_of, stretches

__all__ = ["report_sections"]

_NONE = "-"
_SIZE, _ALARM, _DERIVED = range(3)  # styles
_LEGEND = ((_SIZE, "modules"), (_ALARM, "drift found"), (_DERIVED, "sub-model derived"))

# By layer and module, whether a device has the module.
_Mask = list[list[int]]


class _Device(NamedTuple):
    """A device that has a sub-model.

    Attributes:
        label: Its name, with that of the algorithm where there are several.
        name: Its name.
        group: The runs.
        shares: By layer and module, the share of the runs in which it has the module; ``None`` if
            that is not known.
    """

    label: str
    name: str
    group: Group
    shares: list[list[float]] | None


def report_sections(
    setting: Setting, groups: Sequence[Group], *, charts: bool = True
) -> list[Section]:
    """Show the sub-models of the devices, if any run has logged them.

    Args:
        setting: All runs of one setting.
        groups: Those of the algorithm.
        charts: Whether to draw charts; without them, the choice of modules is a table.

    Raises:
        ReportError: If a ``modules.json`` cannot be read.
    """
    devices = _devices(groups)
    if not devices:
        return []
    sections = [_table(devices)]
    if charts:
        sections.append(_sizes(setting, devices))
    known = {each.label: each.shares for each in devices if each.shares}
    if known:
        sections.append(_drawn_choice(known) if charts else _listed_choice(known))
    return sections


def _devices(groups: Sequence[Group]) -> list[_Device]:
    names = {
        group.label: found
        for group in groups
        if (found := logged_clients(group.runs, "submodel/modules"))
    }
    devices = []
    for group in groups:
        masks = [_read_masks(run) for run in group.runs] if group.label in names else []
        for name in names.get(group.label, ()):
            label = f"{group.label}: {name}" if len(names) > 1 else name
            shares = _shares([own[name] for own in masks if name in own])
            devices.append(_Device(label, name, group, shares))
    return devices


def _read_masks(run: Run) -> dict[str, _Mask]:
    """Read which modules each device has at the end of a run."""
    masks = {}
    files = Path(run.place).glob("adapters/*/modules.json") if run.finished else ()
    for path in sorted(files):
        mask = read_mapping(path, json.loads).get("mask")
        layers = mask if isinstance(mask, list) else []
        rows = [row if isinstance(row, list) else [] for row in layers]
        if not rows or not rows[0] or any(len(row) != len(rows[0]) for row in rows):
            raise ReportError(
                f"{path}: 'mask' must be a list of layers, all with the same number of modules"
            )
        masks[path.parent.name] = [[int(bool(each)) for each in row] for row in rows]
    return masks


def _shares(masks: Sequence[_Mask]) -> list[list[float]] | None:
    """Return the mean of masks; ``None`` if there is none, or if their shapes differ."""
    if len({(len(mask), len(mask[0])) for mask in masks}) != 1:
        return None
    return [
        [math.fsum(each) / len(masks) for each in zip(*rows, strict=True)]
        for rows in zip(*masks, strict=True)
    ]


# The table ----------------------------------------------------------------------------------------


def _table(devices: Sequence[_Device]) -> Section:
    names = ("device", "budget", "modules", "parameters", "bytes", "whole model", "drift found")
    columns = [Column(name, text=name in ("device", "budget")) for name in names]
    columns.append(Column("derived"))
    note = (
        "The part of the model that each device has after the last round, frozen weights included; "
        "means over the seeds. whole model: the model before it is divided, without "
        "what a device keeps beside its modules to choose among them. drift found: rounds in "
        "which the device's test on its gates said so; derived: rounds after which the cloud chose "
        "a sub-model for it. Rounds count from 1."
    )
    grid = Grid(columns, [_line(device) for device in devices])
    return Section("Sub-models of the devices", note, grids=[grid])


def _line(device: _Device) -> list[Cell]:
    group, name = device.group, device.name
    path = f"clients/{name}/submodel"
    parameters = _last(group, f"{path}/parameters")
    texts = (
        device.label,
        _budget(group.runs[-1], name),
        _modules(_last(group, f"{path}/modules"), device.shares),
        _NONE if parameters is None else f"{parameters:,.0f}",
        _size(_last(group, f"{path}/bytes")),
        _size(_whole(group, name)),
        _rounds_text(group, f"clients/{name}/drifted"),
        _rounds_text(group, f"server/derived/{name}"),
    )
    return list(map(Cell, texts))


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
    """Return the last value of a metric, mean over the runs."""
    ends = [values[-1] for run in group.runs if (values := [v for _, _, v in of_metric(key)(run)])]
    return fmean(ends) if ends else None


def _whole(group: Group, client: str) -> float | None:
    """Return the bytes of the whole model, mean over the runs."""
    found = [
        number_at(run.summary, "communication", "edge_parameter_bytes", client)
        for run in group.runs
    ]
    known = [each for each in found if each is not None]
    return fmean(known) if known else None


def _modules(count: float | None, shares: Sequence[Sequence[float]] | None) -> str:
    if count is None:
        return _NONE
    return f"{count:g} of {len(shares) * len(shares[0])}" if shares else f"{count:g}"


def _size(number: float | None) -> str:
    return _NONE if number is None else size(number)


def _rounds(group: Group, key: str) -> dict[int, int]:
    """Return the rounds in which something happened, each with the number of runs."""
    found: dict[int, int] = {}
    for run in group.runs:
        for at in run.history:
            if at.get(key):
                found[int(at["step"])] = found.get(int(at["step"]), 0) + 1
    return dict(sorted(found.items()))


def _rounds_text(group: Group, key: str) -> str:
    if not any(key in at for run in group.runs for at in run.history):
        return _NONE
    of = len(group.runs)
    rounds = _rounds(group, key)
    return ", ".join(f"{r}" if n == of else f"{r} ({n}/{of})" for r, n in rounds.items()) or "never"


# Over the rounds ----------------------------------------------------------------------------------


def _sizes(setting: Setting, devices: Sequence[_Device]) -> Section:
    known = stretches(setting)
    drawn: dict[str, list[Curve]] = {}
    bands: dict[str, list[Band]] = {}
    marks: dict[str, list[Marks]] = {}
    for label, name, group, _ in devices[:MOST_CLIENTS]:
        own = known.get(name, [])
        caption = f"{label}: {', '.join(f'{s.name} ({s.first})' for s in own)}" if own else label
        curve = mean_curve(group, of_metric(f"clients/{name}/submodel/modules"), _SIZE)
        drawn[caption] = [curve] if curve else []
        bands[caption] = bands_of(own)
        events = {_ALARM: f"clients/{name}/drifted", _DERIVED: f"server/derived/{name}"}
        marks[caption] = [Marks(style, list(_rounds(group, key))) for style, key in events.items()]
    note = (
        "Modules that a device has in each round. A dashed line: its data or its budget change; a "
        "caption says in which rounds. Marks at the foot: a device has found its data to have "
        "drifted, the cloud has derived a new sub-model for it, which it gets in the next round."
        f"{spread_note(setting)}{_few(len(devices))}"
    )
    panels = panels_of(drawn, from_zero=True, bands=bands, marks=marks)
    return Section("Size of the sub-models over rounds", note, _LEGEND, panels)


def _few(count: int) -> str:
    return f" {MOST_CLIENTS} of {count} are shown." if count > MOST_CLIENTS else ""


# Which modules ------------------------------------------------------------------------------------

_CHOICE = "Choice of modules"
_CHOICE_NOTE = "Which modules of each layer a device has at the end"


def _drawn_choice(known: dict[str, list[list[float]]]) -> Section:
    shown = list(known.items())[:MOST_CLIENTS]
    panels = [
        Panel(label, cells(shares, x="module", y="layer"), [(0, _counted(shares))])
        for label, shares in shown
    ]
    note = f"{_CHOICE_NOTE}; paler: not with all seeds.{_few(len(known))}"
    return Section(_CHOICE, note, panels=panels)


def _counted(shares: Sequence[Sequence[float]]) -> str:
    """Return the modules of each layer in words."""
    return ", ".join(
        f"layer {n}: {sum(map(bool, row))} of {len(row)} modules"
        for n, row in enumerate(shares, start=1)
    )


def _listed_choice(known: dict[str, list[list[float]]]) -> Section:
    depth = max(map(len, known.values()))
    columns = [Column("device", text=True)]
    columns += [Column(f"layer {n}", text=True) for n in range(1, depth + 1)]
    lines = []
    for label, shares in known.items():
        layers = ["".join(map(_sign, row)) for row in shares]
        layers += [_NONE] * (depth - len(layers))
        lines.append([Cell(text) for text in (label, *layers)])
    note = f"{_CHOICE_NOTE}, module by module: ● with all seeds, ○ with some, · with none."
    return Section(_CHOICE, note, grids=[Grid(columns, lines)])


def _sign(share: float) -> str:
    return "●" if share == 1 else "○" if share else "·"
