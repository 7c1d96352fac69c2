"""CD-CCA in the report: what the devices send of their tokens, and what the choice costs them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from mlecs_lightning.report.drawing.series import logged_clients, of_metric
from mlecs_lightning.report.parts import Cell, Column, Grid, Group, Section, Setting
from mlecs_lightning.report.results.rows import number_at

__all__ = ["report_sections"]

_NONE = "-"


def report_sections(
    setting: Setting, groups: Sequence[Group], *, charts: bool = True
) -> list[Section]:
    """Show the sampling of tokens on each device, if any run has logged it.

    Args:
        setting: All runs of one setting.
        groups: Those of the algorithm.
        charts: Not used: there is a table alone.
    """
    named = {group.label: logged_clients(group.runs, "uts/looked_at") for group in groups}
    several = sum(map(bool, named.values())) > 1
    rows = [
        _line(group, client, f"{group.label}: {client}" if several else client)
        for group in groups
        for client in named[group.label]
    ]
    if not rows:
        return []
    names = ("device", "tokens a round", "sent", "share", "encoders", "language model")
    note = (
        "What each device sends of the tokens that it looks at, means over rounds and seeds, and "
        "how often it runs its encoders and its language model for each sample to choose them; an "
        "answer counts as one pass."
    )
    columns = [Column(name, text=name == "device") for name in names]
    return [Section("Sampling on the devices", note, grids=[Grid(columns, rows)])]


def _line(group: Group, client: str, label: str) -> list[Cell]:
    seen, sent = (_mean(group, f"clients/{client}/uts/{key}") for key in ("looked_at", "sent"))
    share = _NONE if not seen or sent is None else f"{sent / seen:.2f}"
    passes = [_passes(group, key) for key in ("encoder_passes", "language_model_passes")]
    return [Cell(text) for text in (label, *map(_number, (seen, sent)), share, *passes)]


def _mean(group: Group, key: str) -> float | None:
    values = [value for run in group.runs for _, _, value in of_metric(key)(run)]
    return fmean(values) if values else None


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.0f}"


def _passes(group: Group, key: str) -> str:
    """Return the passes of a sample, which all runs of a group have in common."""
    found = [number_at(run.summary, "sampling", key) for run in group.runs]
    known = [value for value in found if value is not None]
    return f"{known[-1]:g}" if known else _NONE
