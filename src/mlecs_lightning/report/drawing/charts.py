"""Small charts as inline SVG: Matplotlib draws them, the page's style sheet colours them.

A chart holds no text from outside: titles and names stand beside it, in HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from mlecs_lightning.report.drawing.svg import GRID, INK, look, panel, svg
from mlecs_lightning.report.labels import size

__all__ = ["Band", "Curve", "Marks", "Point", "cells", "curves", "interval", "points", "steps"]


class Curve(NamedTuple):
    """Values over rounds or bytes.

    Attributes:
        style: Number of the series: colour, marker, dash.
        x: Places.
        y: Values, means over seeds.
        spread: Standard deviations; 0 where there is one value.
        dots: The single values (x, y), where they are to be seen.
    """

    style: int
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float]
    dots: Sequence[tuple[float, float]] = ()


class Band(NamedTuple):
    """A stretch of rounds behind the curves.

    Attributes:
        start: The first round of it, from 1.
        end: The last one.
        style: Number of the series whose colour it has; of those with ``None`` every other one is
            grey.
    """

    start: float
    end: float
    style: int | None = None


class Marks(NamedTuple):
    """Events, as markers at the foot of a chart; several kinds stand above each other.

    Attributes:
        style: Number of the series whose colour and marker they have.
        x: Rounds.
    """

    style: int
    x: Sequence[float]


class Point(NamedTuple):
    """A value at a place.

    Attributes:
        style: Number of the series.
        x: Place.
        y: Mean over seeds.
        spread: Standard deviation; 0 where there is one value.
    """

    style: int
    x: float
    y: float
    spread: float


Limits = tuple[float, float]


def limits_of(values: Sequence[float], *, floor: float | None = None) -> Limits | None:
    """Return limits of an axis that several charts share, a little wider than the values.

    Args:
        values: All that will be shown, spreads included.
        floor: The axis does not begin below.
    """
    if not values:
        return None
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    low = low - margin if floor is None else max(low - margin, floor)
    return low, high + margin


def curves(
    series: Sequence[Curve],
    *,
    x: str,
    limits: Limits | None = None,
    in_bytes: bool = False,
    bands: Sequence[Band] = (),
    marks: Sequence[Marks] = (),
) -> str:
    """Return lines with bands of one standard deviation.

    Args:
        series: What to draw.
        x: Name of the x axis.
        limits: Of the y axis.
        in_bytes: The x axis counts bytes; rounds otherwise.
        bands: Stretches of rounds behind them, which cover the axis.
        marks: Events at the foot.
    """

    def draw(axes: Axes) -> None:
        _stretches(axes, bands)
        for row, events in enumerate(marks):
            colour, marker, _ = look(events.style)
            axes.plot(
                events.x,
                [0.05 + 0.09 * row] * len(events.x),
                color=colour,
                marker=marker,
                markersize=5,
                linestyle="",
                transform=axes.get_xaxis_transform(),
            )
        for each in series:
            marked = len(each.x) <= 12  # more markers than that hide the line
            colour, marker, dash = look(each.style)
            axes.plot(
                each.x,
                each.y,
                color=colour,
                linestyle=dash,
                linewidth=1.6,
                marker=marker if marked else "",
                markersize=4,
            )
            low, high = (
                [y + sign * s for y, s in zip(each.y, each.spread, strict=True)] for sign in (-1, 1)
            )
            if any(each.spread):
                axes.fill_between(each.x, low, high, color=colour, alpha=0.18, linewidth=0)
        if in_bytes:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
            axes.xaxis.set_major_locator(MaxNLocator(4))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.set_xlabel(x)

    return panel(draw, limits)


def _stretches(axes: Axes, bands: Sequence[Band]) -> None:
    """Shade stretches of rounds, with a line where one ends and the next begins."""
    for number, band in enumerate(bands):
        if band.style is None and number % 2 == 0:
            continue
        colour = GRID if band.style is None else look(band.style)[0]
        alpha = 0.35 if band.style is None else 0.1
        axes.axvspan(
            band.start - 0.5, band.end + 0.5, color=colour, alpha=alpha, linewidth=0, zorder=0
        )
    for band in bands[1:]:
        axes.axvline(band.start - 0.5, color=INK, linewidth=0.8, alpha=0.6, linestyle=(0, (3, 3)))
    if bands:
        axes.set_xlim(bands[0].start - 0.5, bands[-1].end + 0.5)


def steps(series: Sequence[Curve], *, limits: Limits | None = None, in_bytes: bool = False) -> str:
    """Return means over the values of a setting, with the single values as dots.

    The x axis shows the values themselves, on a logarithmic scale if they span a decade.

    Args:
        series: What to draw; ``x`` are the values of the setting.
        limits: Of the y axis.
        in_bytes: The y axis counts bytes.
    """

    def draw(axes: Axes) -> None:
        for each in series:
            colour, marker, dash = look(each.style)
            axes.plot(each.x, each.y, color=colour, linestyle=dash, linewidth=1.6)
            axes.plot(each.x, each.y, color=colour, linestyle="", marker=marker, markersize=5)
            if each.dots:
                xs, ys = zip(*each.dots, strict=True)
                axes.scatter(xs, ys, s=14, color=colour, alpha=0.4)
        values = sorted({x for each in series for x in each.x})
        if values[0] > 0 and values[-1] >= 10 * values[0]:
            axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(FixedLocator(values, nbins=7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if in_bytes:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))

    return panel(draw, limits)


def cells(values: Sequence[Sequence[float]], *, x: str, y: str) -> str:
    """Return a grid of cells, the fuller the larger the value.

    Args:
        values: In [0, 1], by row from the top and by column.
        x: Name of the columns, which are counted from 1.
        y: Name of the rows, which are counted from 1.
    """
    rows, columns = len(values), len(values[0])
    gap = 0.08

    def draw(axes: Axes) -> None:
        squares: dict[float, list[Path]] = {}
        for i, row in enumerate(values, start=1):
            for j, value in enumerate(row, start=1):
                low, high = (j - 0.5 + gap, i - 0.5 + gap), (j + 0.5 - gap, i + 0.5 - gap)
                corners = [low, (high[0], low[1]), high, (low[0], high[1]), low]
                squares.setdefault(value, []).append(Path(corners, closed=True))
        for value, paths in squares.items():
            colour = look(0)[0] if value else GRID
            patch = PathPatch(
                Path.make_compound_path(*paths), color=colour, alpha=value or 0.5, linewidth=0
            )
            axes.add_patch(patch)
        axes.set_xlim(0.5, columns + 0.5)
        axes.set_ylim(rows + 0.5, 0.5)
        axes.grid(visible=False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    return panel(draw, None)


def points(series: Sequence[Point], *, x: str, limits: Limits | None = None) -> str:
    """Return points over bytes, with whiskers of one standard deviation.

    Args:
        series: What to draw.
        x: Name of the x axis.
        limits: Of the y axis.
    """

    def draw(axes: Axes) -> None:
        for each in series:
            colour, marker, _ = look(each.style)
            axes.errorbar(
                each.x,
                each.y,
                yerr=each.spread or None,
                color=colour,
                marker=marker,
                markersize=6,
                linewidth=1.2,
                capsize=3,
            )
        sent = [each.x for each in series if each.x > 0]
        if sent and max(sent) > 50 * min(sent):
            axes.set_xscale("symlog", linthresh=min(sent))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4))
            reach = max([*sent, 1.0])
            axes.set_xlim(-0.05 * reach, 1.05 * reach)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
        axes.set_xlabel(x)

    return panel(draw, limits)


def interval(mean: float, low: float, high: float, *, reach: float) -> str:
    """Return a mean and its confidence interval as a line beside zero, to stand in a table.

    Args:
        mean: The mean.
        low: Lower end of the interval.
        high: Upper end.
        reach: The axis goes from -reach to reach.
    """

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=INK, linewidth=0.8, alpha=0.5)
        axes.plot([low, high], [0, 0], color=INK, linewidth=1.4, solid_capstyle="butt")
        axes.plot([mean], [0], color=INK, marker="o", markersize=4.5)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-1, 1)
        axes.axis("off")

    return svg(draw, (1.5, 0.2), bare=True)
