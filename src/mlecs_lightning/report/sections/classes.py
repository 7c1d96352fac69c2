"""Which classes are taken for which, and the scores of each class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlecs_lightning.report.labels import NOTHING
from mlecs_lightning.report.parts import Cell, Column, Grid, Section, Setting
from mlecs_lightning.report.results.rows import Row

__all__ = ["ClassScore", "class_scores", "classes"]

_PARTIES = {"clients": "all clients together", "server": "server"}
_UNREADABLE = "no class"

Counts = NDArray[np.int64]
"""Answers by true class (row) and answered class (column); the last column has no class."""

ClassScore = dict[str, float | None]


def class_scores(counts: Counts) -> list[ClassScore]:
    """Return precision, recall and F1 of each class; ``None`` where the divisor is zero.

    An answer without a readable class lowers the recall of its true class, as in the macro-F1 of
    `mlecs_lightning.metrics.LabelScores`.

    Args:
        counts: C rows of C + 1 counts.

    Example:
        >>> class_scores(np.array([[3, 0, 1], [2, 4, 0]]))[0]["precision"]
        0.6
    """
    found = []
    for k, row in enumerate(counts):
        hit, true, answered = int(row[k]), int(row.sum()), int(counts[:, k].sum())
        found.append(
            {
                "precision": hit / answered if answered else None,
                "recall": hit / true if true else None,
                "F1": 2 * hit / (true + answered) if true else None,
            }
        )
    return found


def classes(setting: Setting) -> Section | None:
    """Show confusion matrices and the scores of each class, summed over clients and seeds."""
    scores: list[Grid] = []
    matrices: list[Grid] = []
    found_by: dict[tuple[str, str], tuple[list[str], Counts]] = {}
    labels = list(dict.fromkeys(row.algorithm for row in setting.rows))
    for label in labels:
        rows = [row for row in setting.rows if row.algorithm == label]
        for party, name in _PARTIES.items():
            found = _summed(rows, party)
            if found is not None:
                names, counts = found
                caption = f"{label}, {name}"
                found_by[label, name] = found
                scores.append(_score_grid(names, counts, caption, folded=len(labels) > 1))
                matrices.append(_matrix_grid(names, counts, caption))
    if not scores:
        return None
    note = (
        "Test samples of all domains, summed over the seeds and, for the clients, over the "
        "clients. In a confusion matrix rows are true classes and columns the classes that the "
        "answers name; a deeper shade is a larger share of the row. An answer that names no class "
        "or several counts as wrong."
    )
    beside = [_beside(found_by)] if len(labels) > 1 else []
    return Section("Classes", note, grids=[*beside, *scores, *matrices])


def _beside(found: Mapping[tuple[str, str], tuple[Sequence[str], Counts]]) -> Grid:
    """Return the F1 of each class, with the algorithms beside each other."""
    names = list(dict.fromkeys(name for own, _ in found.values() for name in own))
    columns = [Column("F1 of the class", text=True)]
    columns += [Column(party.removeprefix("all ").split()[0], label) for label, party in found]
    by_column = [
        dict(zip(own, class_scores(counts), strict=True)) for own, counts in found.values()
    ]
    rows = [[Cell(name), *(_cell(c.get(name, {}).get("F1")) for c in by_column)] for name in names]
    return Grid(columns, rows)


def _summed(rows: Sequence[Row], party: str) -> tuple[list[str], Counts] | None:
    """Return the classes and the summed counts; ``None`` if no run has any."""
    names: list[str] = []
    total: Counts | None = None
    for row in rows:
        told = row.summary.get("confusion", {})
        for matrix in _matrices(told, party):
            own = [str(each) for each in told["classes"]]
            counts = np.asarray(matrix, dtype=np.int64)
            if total is None:
                names, total = own, counts
            elif names == own:
                total = total + counts
    return None if total is None else (names, total)


def _matrices(told: Mapping[str, Any], party: str) -> Iterator[Any]:
    if party == "server":
        if "server" in told:
            yield told["server"]
    else:
        yield from told.get("clients", {}).values()


def _score_grid(names: Sequence[str], counts: Counts, caption: str, *, folded: bool) -> Grid:
    columns = [Column("class", text=True), Column("samples")]
    columns += [Column(measure) for measure in ("precision", "recall", "F1")]
    rows = [
        [Cell(name), Cell(f"{int(row.sum()):,}"), *map(_cell, scores.values())]
        for name, row, scores in zip(names, counts, class_scores(counts), strict=True)
    ]
    return Grid(columns, rows, caption=f"{caption}: scores by class", folded=folded)


def _cell(score: float | None) -> Cell:
    return Cell(NOTHING) if score is None else Cell(f"{score:.3f}")


def _matrix_grid(names: Sequence[str], counts: Counts, caption: str) -> Grid:
    columns = [Column("true class", text=True)]
    columns += [Column(name, "answered class") for name in (*names, _UNREADABLE)]
    rows = []
    for name, row in zip(names, counts, strict=True):
        total = max(int(row.sum()), 1)
        rows.append([Cell(name), *(Cell(f"{n:,}", shade=float(n / total)) for n in row)])
    return Grid(columns, rows, caption=f"{caption}: confusion matrix", folded=True)
