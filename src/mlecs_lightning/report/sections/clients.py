"""Who has which modality, and how each client does."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from mlecs_lightning.report.labels import NOTHING
from mlecs_lightning.report.many import MOST_ROWS, QUANTILES, quantiles_of
from mlecs_lightning.report.parts import Cell, Column, Grid, Section, Setting
from mlecs_lightning.report.results.matrix import table
from mlecs_lightning.report.results.rows import number_at

__all__ = ["clients"]

_NONE = "-"


def clients(setting: Setting) -> Section | None:
    """Show which client has which modality, and how each does."""
    has = _modalities_by_seed(setting)
    if not has:
        return None
    names = list(dict.fromkeys(m for given in has.values() for _, some in given for m in some))
    order = [group.label for group in setting.groups]
    labels = [entry.algorithm for entry in table(setting.rows, [], order=order)]
    scored = [(label, view) for label in labels for view in ("all", "own")]
    columns = [Column("client", text=True), *(Column(name, "modalities") for name in names)]
    columns += [Column(view, label) for label, view in scored]
    rows: list[list[Cell]] = []
    scores: list[list[float | None]] = []
    partly = False
    for client, given in has.items():
        counts = [sum(name in some for _, some in given) for name in names]
        partly = partly or any(0 < count < len(given) for count in counts)
        texts = [client, *(_share(count, len(given)) for count in counts)]
        means = [_mean_of_client(setting, label, client, view) for label, view in scored]
        texts += [NOTHING if each is None else f"{each:.3f}" for each in means]
        scores.append(means)
        rows.append(list(map(Cell, texts)))
    note = "●: the client has the modality."
    if partly:
        note += " 2/5: with two of five seeds."
    if labels:
        note += f" {setting.main_name}, mean over the seeds."
    many = len(rows) > MOST_ROWS
    grids = [Grid(columns, rows, caption=f"The {len(rows):,} clients" if many else "", folded=many)]
    if many and labels:
        grids.insert(0, _spread(scored, scores))
    return Section("Clients", note, grids=grids)


def _spread(scored: Sequence[tuple[str, str]], scores: Sequence[Sequence[float | None]]) -> Grid:
    """Return the quantiles over the clients, for each algorithm and view."""
    columns = [Column("quantile over the clients", text=True)]
    columns += [Column(view, label) for label, view in scored]
    by_column = [
        quantiles_of([each for each in column if each is not None])
        for column in zip(*scores, strict=True)
    ]
    rows = [
        [Cell(name), *(Cell(f"{c[name]:.3f}" if c else NOTHING) for c in by_column)]
        for name in QUANTILES
    ]
    return Grid(columns, rows)


def _modalities_by_seed(
    setting: Setting,
) -> dict[str, dict[tuple[int | None, tuple[str, ...]], None]]:
    """Return the modalities of each client: those drawn anew with each seed, once a seed."""
    has: dict[str, dict[tuple[int | None, tuple[str, ...]], None]] = {}
    for run in setting.runs:
        for client, modalities in run.modalities.items():
            has.setdefault(client, {})[run.seed, modalities] = None
    return has


def _mean_of_client(setting: Setting, label: str, client: str, view: str) -> float | None:
    found = [
        number_at(row.summary, "clients", client, view, setting.main)
        for row in setting.rows
        if row.algorithm == label
    ]
    numbers = [each for each in found if each is not None]
    return fmean(numbers) if numbers else None


def _share(count: int, of: int) -> str:
    if count in (0, of):
        return "●" if count else _NONE
    return f"{count}/{of}"
