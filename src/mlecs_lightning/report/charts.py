"""Small charts as inline SVG: Matplotlib draws them, the page's style sheet colours them.

A chart holds no text from outside: titles and names stand beside it, in HTML.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mlecs_lightning.report.labels import size

__all__ = ["COLOURS", "Curve", "Point", "curves", "distinct_ids", "interval", "points", "swatch"]

COLOURS = 8
"""Series colours of the style sheet, ``--series-0`` and so on."""

# Told apart without colour, too: a marker for each colour, another dash after the last.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1, 2)))

# Matplotlib knows no CSS variables, so it draws in colours that stand for them.
_INK, _GRID = "#010101", "#020202"
_VARIABLES = {_INK: "var(--ink)", _GRID: "var(--grid)"} | {
    f"#0300{i:02x}": f"var(--series-{i})" for i in range(COLOURS)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "svg.hashsalt": "mlecs",  # the same input gives the same bytes
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _GRID,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "axes.formatter.limits": (-3, 4),  # longer numbers would not fit beside the axis
    "axes.formatter.useoffset": False,
}
_PANEL = (3.6, 2.2)  # inches at 72 to the inch; four beside each other in a page of 1280 pixels
# The plot within it, as shares: all panels line up, which a layout by content would not give.
_AREA = (0.15, 0.2, 0.79, 0.75)


class Curve(NamedTuple):
    """Values over rounds or bytes.

    Attributes:
        style: Number of the series: colour, marker, dash.
        x: Places.
        y: Values, means over seeds.
        spread: Standard deviations; 0 where there is one value.
    """

    style: int
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float]


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
) -> str:
    """Return lines with bands of one standard deviation.

    Args:
        series: What to draw.
        x: Name of the x axis.
        limits: Of the y axis.
        in_bytes: The x axis counts bytes; rounds otherwise.
    """

    def draw(axes: Axes) -> None:
        for each in series:
            marked = len(each.x) <= 12  # more markers than that hide the line
            colour, marker, dash = _look(each.style)
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

    return _panel(draw, limits)


def points(series: Sequence[Point], *, x: str, limits: Limits | None = None) -> str:
    """Return points over bytes, with whiskers of one standard deviation.

    Args:
        series: What to draw.
        x: Name of the x axis.
        limits: Of the y axis.
    """

    def draw(axes: Axes) -> None:
        for each in series:
            colour, marker, _ = _look(each.style)
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
            axes.set_xlim(left=-0.05 * max([*sent, 1.0]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
        axes.set_xlabel(x)

    return _panel(draw, limits)


def interval(mean: float, low: float, high: float, *, reach: float) -> str:
    """Return a mean and its confidence interval as a line beside zero, to stand in a table.

    Args:
        mean: The mean.
        low: Lower end of the interval.
        high: Upper end.
        reach: The axis goes from -reach to reach.
    """

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=_INK, linewidth=0.8, alpha=0.5)
        axes.plot([low, high], [0, 0], color=_INK, linewidth=1.4, solid_capstyle="butt")
        axes.plot([mean], [0], color=_INK, marker="o", markersize=4.5)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-1, 1)
        axes.axis("off")

    return _svg(draw, (1.5, 0.2), bare=True)


@cache
def swatch(style: int) -> str:
    """Return the line and the marker of a series, to stand in a legend."""
    colour, marker, dash = _look(style)

    def draw(axes: Axes) -> None:
        axes.plot([0, 1, 2], [0, 0, 0], color=colour, linestyle=dash, linewidth=1.6)
        axes.plot([1], [0], color=colour, marker=marker, markersize=5)
        axes.set_ylim(-1, 1)
        axes.axis("off")

    return _svg(draw, (0.42, 0.17), bare=True)


def distinct_ids(page: str) -> str:
    """Return a page in which no two charts use the same id."""
    numbers = iter(range(page.count("<svg")))

    def renamed(chart: re.Match[str]) -> str:
        prefix = f"c{next(numbers)}-"
        return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", chart[0])

    return re.sub(r"<svg.*?</svg>", renamed, page, flags=re.DOTALL)


def _look(style: int) -> tuple[str, str, object]:
    turn, colour = divmod(style, COLOURS)
    return f"#0300{colour:02x}", _MARKERS[colour], _DASHES[turn % len(_DASHES)]


def _panel(draw: Callable[[Axes], None], limits: Limits | None) -> str:
    def with_limits(axes: Axes) -> None:
        draw(axes)
        axes.tick_params(length=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if limits is not None:
            axes.set_ylim(*limits)

    return _svg(with_limits, _PANEL)


def _svg(draw: Callable[[Axes], None], inches: tuple[float, float], *, bare: bool = False) -> str:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=inches)
        axes = figure.add_axes((0, 0, 1, 1) if bare else _AREA)
        draw(axes)
        file = io.StringIO()
        figure.savefig(
            file,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    return _inline(file.getvalue())


def _inline(text: str) -> str:
    """Return an SVG file as part of a page: no size, font or style sheet of its own."""
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<(metadata|style).*?</\1>|<!--.*?-->", "", text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height|xmlns:xlink)="[^"]*"', "", head)
    text = f"{head}>{rest}".replace("xlink:href", "href")
    text = re.sub(r" font-family: [^;]*;", "", text)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return re.sub(r"\s*\n\s*", "\n", text)
