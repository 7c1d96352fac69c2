"""The configuration values that labels cut short: of a setting, and of the rows of its tables."""

from __future__ import annotations

from collections.abc import Sequence

from mlecs_lightning.report.parts import Cell, Column, Grid, Group, Section, Setting
from mlecs_lightning.report.results.configs import is_of_data

__all__ = ["of_rows", "of_setting"]

_ABSENT = "not set"


def of_setting(setting: Setting, others: Sequence[Setting]) -> Section | None:
    """List the keys of data and clients in which a setting differs from the others.

    Args:
        setting: The setting.
        others: All settings of the page.
    """
    ours = setting.groups[0].runs[0].leaves
    theirs = [other.groups[0].runs[0].leaves for other in others]
    keys = dict.fromkeys(key for leaves in (ours, *theirs) for key in leaves if is_of_data(key))
    rows = [
        [Cell(key), Cell(ours.get(key, _ABSENT))]
        for key in keys
        if any(leaves.get(key) != ours.get(key) for leaves in theirs if leaves)
    ]
    if not rows or not ours:
        return None
    columns = [Column("key", raw=True), Column("value", raw=True)]
    caption = "Values of data and clients that differ between the settings"
    return Section("", grids=[Grid(columns, rows, caption=caption, folded=True)])


def of_rows(setting: Setting) -> Section | None:
    """List every key in which a row of the tables differs from the first, data and seed aside.

    Of another algorithm, arguments that the first does not have are left out.
    """
    first = setting.groups[0]
    rows = [line for group in setting.groups[1:] for line in _changes(group, first)]
    if not rows:
        return None
    columns = [
        Column("algorithm", text=True),
        Column("key", raw=True),
        Column("value", raw=True),
        Column(f"in {first.label}", raw=True),
    ]
    caption = f"Every key in which a row differs from {first.label}"
    return Section(
        "What differs between the rows", grids=[Grid(columns, rows, caption, folded=True)]
    )


def _changes(group: Group, first: Group) -> list[list[Cell]]:
    ours, theirs = group.runs[0].leaves, first.runs[0].leaves
    if not ours or not theirs:
        return []
    same = group.runs[0].method == first.runs[0].method
    rows = []
    for key in dict.fromkeys((*theirs, *ours)):
        if ours.get(key) == theirs.get(key) or is_of_data(key) or key == "algorithm.class_path":
            continue
        if same or not key.startswith("algorithm.") or (key in ours and key in theirs):
            texts = (group.label, key, ours.get(key, _ABSENT), theirs.get(key, _ABSENT))
            rows.append(list(map(Cell, texts)))
    return rows
