"""The parts of a report, sections with tables and charts, and the groups of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from mlecs_lightning.report.labels import SCORES
from mlecs_lightning.report.results.reading import Run
from mlecs_lightning.report.results.rows import Row, value

__all__ = ["Cell", "Column", "Grid", "Group", "Panel", "Section", "Setting", "arrange"]

# What differences and charts show: the first that the runs have.
_MAIN = ("macro_f1", "rouge_lsum", "accuracy", "exact_match")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its heading.
        over: A heading that it shares with its neighbours.
        text: Whether it holds words rather than numbers.
        raw: Whether it holds keys and values as in a configuration, which may be long.
    """

    name: str
    over: str = ""
    text: bool = False
    raw: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What it says.
        best: Whether that is the best of its column.
        chart: SVG beside it.
        shade: How deep its background is, in [0, 1]; ``None`` for none.
    """

    text: str
    best: bool = False
    chart: str = ""
    shade: float | None = None


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        columns: The columns; the first names the row.
        rows: The rows.
        caption: What it is, where its section holds several.
        aside: Indices of rows that are no results, but are there to compare with.
        notes: Footnotes.
        folded: Whether the page shows only its caption until a reader opens it.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    aside: frozenset[int] = frozenset()
    notes: Sequence[str] = ()
    folded: bool = False

    def runs(self) -> list[tuple[str, int]]:
        """Return the shared headings, each with the number of its columns."""
        return [(over, len(list(own))) for over, own in groupby(c.over for c in self.columns)]

    def classes(self, index: int) -> str:
        """Return the style classes of a column: words, and the first under a shared heading."""
        column = self.columns[index]
        first = index > 0 and column.over != self.columns[index - 1].over
        return " ".join(
            ["words"] * (column.text or column.raw) + ["raw"] * column.raw + ["first"] * first
        )


@dataclass(frozen=True)
class Panel:
    """A chart with its caption.

    Attributes:
        caption: What is drawn.
        chart: SVG.
        series: Style of each series, and what it does in words: the alternative text.
    """

    caption: str
    chart: str
    series: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Heading.
        note: How to read it.
        legend: Series of the charts: style and label.
        panels: Charts.
        grids: Tables.
    """

    title: str
    note: str = ""
    legend: Sequence[tuple[int, str]] = ()
    panels: Sequence[Panel] = ()
    grids: Sequence[Grid] = ()

    def alternative(self, panel: Panel) -> str:
        """Return the text that stands for a chart where it cannot be seen."""
        names = dict(self.legend)
        told = [
            f"{names[style]}: {text}" if style in names else text for style, text in panel.series
        ]
        return "; ".join([f"Chart, {self.title}, {panel.caption}".rstrip(", "), *told])


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        label: The algorithm.
        style: Number of its series in every chart.
        runs: The runs.
    """

    label: str
    style: int
    runs: Sequence[Run]


@dataclass(frozen=True)
class Setting:
    """Runs of the same data and clients.

    Attributes:
        label: Which.
        groups: By algorithm.
        rows: Those that have ended, one for each algorithm and seed.
        main: The score that charts show.
    """

    label: str
    groups: Sequence[Group]
    rows: Sequence[Row]
    main: str

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for group in self.groups for run in group.runs]

    @property
    def main_name(self) -> str:
        """The name of `main` for people."""
        return SCORES.get(self.main, self.main)


def arrange(runs: Sequence[Run], *, reference: str) -> list[Setting]:
    """Group runs by setting and algorithm.

    Args:
        runs: All runs.
        reference: The algorithm that comes first; the others follow as they first appear.
    """
    labels = list(dict.fromkeys(run.algorithm for run in runs))
    labels.sort(key=lambda label: label != reference)
    found = []
    for name in dict.fromkeys(run.setting for run in runs):
        here = [run for run in runs if run.setting == name]
        groups = [
            Group(label, style, own)
            for style, label in enumerate(labels)
            if (own := [run for run in here if run.algorithm == label])
        ]
        # A run that was done again is counted once, as it was done last.
        rows = {
            (run.algorithm, run.seed): run.row()
            for group in groups
            for run in group.runs
            if run.finished
        }
        found.append(Setting(name, groups, list(rows.values()), _main(here, rows.values())))
    return found


def _main(runs: Sequence[Run], rows: Iterable[Row]) -> str:
    rows = list(rows)
    for score in _MAIN:
        measured = any(
            value(row, f"{view}.{score}") is not None
            for row in rows
            for view in ("mean.all", "server")
        )
        if measured or any(f"clients/val/{score}" in at for run in runs for at in run.history):
            return score
    return _MAIN[0]
