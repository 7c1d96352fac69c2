"""Curves over rounds, means over seeds, and the panels that hold them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from mlecs_lightning.report.drawing.charts import Band, Curve, Marks, Point, curves, limits_of
from mlecs_lightning.report.labels import size
from mlecs_lightning.report.parts import Group, Panel, Setting
from mlecs_lightning.report.results.reading import Run

__all__ = [
    "MOST_CLIENTS",
    "Reader",
    "Series",
    "all_curves",
    "described",
    "extent",
    "legend",
    "logged_clients",
    "mean_curve",
    "of_metric",
    "panels_of",
    "spread_note",
]

MOST_CLIENTS = 24
"""More panels nobody compares."""

_SPREAD = " Lines are means over seeds, bands one standard deviation."
_ONE_SEED = " A line of one seed has no spread."

Series = list[tuple[float, float, float]]
"""Round, x and y of one run."""

Reader = Callable[[Run], Series]


def mean_curve(group: Group, read: Reader, style: int | None = None) -> Curve | None:
    """Return mean and spread over the runs of a group, where there is anything."""
    at: dict[float, tuple[list[float], list[float]]] = {}
    for run in group.runs:
        for step, x, y in read(run):
            xs, ys = at.setdefault(step, ([], []))
            xs.append(x)
            ys.append(y)
    at = dict(sorted(at.items()))  # the first seed may lack rounds that others have
    if not at:
        return None
    return Curve(
        group.style if style is None else style,
        [statistics.fmean(xs) for xs, _ in at.values()],
        [statistics.fmean(ys) for _, ys in at.values()],
        [statistics.stdev(ys) if len(ys) > 1 else 0.0 for _, ys in at.values()],
    )


def of_metric(key: str) -> Reader:
    """Return a reader of one metric over rounds."""
    return lambda run: [(at["step"], at["step"], at[key]) for at in run.history if key in at]


def logged_clients(runs: Sequence[Run], metric: str) -> list[str]:
    """Return the clients whose logs have a metric, in the order of the configuration.

    Args:
        runs: The runs.
        metric: A regular expression for what stands behind ``clients/NAME/``.
    """
    pattern = re.compile(rf"clients/(.+)/{metric}")
    found = {
        match[1]: None
        for run in runs
        for at in run.history
        for key in at
        if (match := pattern.fullmatch(key))
    }
    order = list(dict.fromkeys(name for run in runs for name in run.modalities))
    # Columns of metrics.csv are sorted by name.
    return sorted(found, key=lambda name: order.index(name) if name in order else len(order))


def described(series: Iterable[Curve | Point], *, in_bytes: bool = False) -> list[tuple[int, str]]:
    """Return the style of each series and where it begins and ends, in words.

    Args:
        series: Curves or points.
        in_bytes: Whether the x axis counts bytes.
    """

    def at(x: float) -> str:
        return size(x) if in_bytes else f"{x:g}"

    told = []
    for each in series:
        if isinstance(each, Point):
            told.append((each.style, f"{each.y:.3g} at {at(each.x)}"))
        elif len(each.x) == 1:
            told.append((each.style, f"{each.y[0]:.3g} at {at(each.x[0])}"))
        else:
            first, last = (
                f"{each.y[0]:.3g} at {at(each.x[0])}",
                f"{each.y[-1]:.3g} at {at(each.x[-1])}",
            )
            told.append((each.style, f"from {first} to {last}"))
    return told


def extent(series: Iterable[Curve | Point]) -> list[float]:
    """Return the ends of all that will be drawn, spreads included."""
    values = []
    for each in series:
        pairs = (
            [(each.y, each.spread)]
            if isinstance(each, Point)
            else zip(each.y, each.spread, strict=True)
        )
        values += [y + sign * s for y, s in pairs for sign in (-1, 1)]
    return values


def panels_of(
    drawn: Mapping[str, Sequence[Curve]],
    *,
    x: str = "rounds",
    floor: float | None = None,
    from_zero: bool = False,
    bands: Mapping[str, Sequence[Band]] | None = None,
    marks: Mapping[str, Sequence[Marks]] | None = None,
) -> list[Panel]:
    """Return charts that share one y axis.

    Args:
        drawn: Curves by caption; none makes no chart.
        x: Name of the x axis.
        floor: The y axis does not begin below.
        from_zero: The y axis begins at zero.
        bands: By caption the stretches of rounds behind the curves.
        marks: By caption the events below them.
    """
    limits = limits_of(extent(c for series in drawn.values() for c in series), floor=floor)
    if limits and from_zero:
        limits = (0.0, 1.06 * limits[1])
    bands, marks = bands or {}, marks or {}
    return [
        Panel(
            caption,
            curves(
                series,
                x=x,
                limits=limits,
                bands=bands.get(caption, ()),
                marks=marks.get(caption, ()),
            ),
            described(series),
        )
        for caption, series in drawn.items()
        if series
    ]


def legend(setting: Setting, drawn: Iterable[Sequence[Curve | Point]]) -> list[tuple[int, str]]:
    """Return style and label of the algorithms that are drawn."""
    styles = {each.style for series in drawn for each in series}
    return [(group.style, group.label) for group in setting.groups if group.style in styles]


def all_curves(setting: Setting, read: Reader) -> list[Curve]:
    """Return a curve for each algorithm that has one."""
    return [curve for group in setting.groups if (curve := mean_curve(group, read))]


def spread_note(setting: Setting) -> str:
    """Return what lines and bands are, and that one run of an algorithm has no spread."""
    counts = {len(group.runs) > 1 for group in setting.groups}
    return _SPREAD * (True in counts) + _ONE_SEED * (False in counts)
