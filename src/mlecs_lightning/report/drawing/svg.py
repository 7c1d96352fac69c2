"""Matplotlib's drawings as inline SVG that the page's style sheet colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["COLOURS", "GRID", "INK", "distinct_ids", "look", "panel", "svg", "swatch"]

COLOURS = 8
"""Series colours of the style sheet, ``--series-0`` and so on."""

# Told apart without colour, too: a marker for each colour, another dash after the last.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1, 2)))

# Matplotlib knows no CSS variables, so it draws in colours that stand for them.
INK, GRID = "#010101", "#020202"
_VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)"} | {
    f"#0300{i:02x}": f"var(--series-{i})" for i in range(COLOURS)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the font of the page
    "svg.hashsalt": "mlecs",  # the same input gives the same bytes
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "axes.formatter.limits": (-3, 4),  # longer numbers would not fit beside the axis
    "axes.formatter.useoffset": False,
}
_PANEL = (4.8, 2.8)  # inches at 72 to the inch; three beside each other in a page of 1280 pixels
# The plot within it, as shares: all panels line up, which a layout by content would not give.
_AREA = (0.12, 0.16, 0.85, 0.8)


def look(style: int) -> tuple[str, str, object]:
    """Return colour, marker and dash of a series."""
    turn, colour = divmod(style, COLOURS)
    return f"#0300{colour:02x}", _MARKERS[colour], _DASHES[turn % len(_DASHES)]


def panel(draw: Callable[[Axes], None], limits: tuple[float, float] | None) -> str:
    """Return a chart of the common size.

    Args:
        draw: Puts what it shows into the axes.
        limits: Of the y axis.
    """

    def with_limits(axes: Axes) -> None:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        draw(axes)
        axes.tick_params(length=0)
        if limits is not None:
            axes.set_ylim(*limits)

    return svg(with_limits, _PANEL)


def svg(draw: Callable[[Axes], None], inches: tuple[float, float], *, bare: bool = False) -> str:
    """Return a drawing.

    Args:
        draw: Puts what it shows into the axes.
        inches: Width and height, at 72 to the inch.
        bare: Whether the axes fill it, without room for numbers beside them.
    """
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


@cache
def swatch(style: int) -> str:
    """Return the line and the marker of a series, to stand in a legend."""
    colour, marker, dash = look(style)

    def draw(axes: Axes) -> None:
        axes.plot([0, 1, 2], [0, 0, 0], color=colour, linestyle=dash, linewidth=1.6)
        axes.plot([1], [0], color=colour, marker=marker, markersize=5)
        axes.set_ylim(-1, 1)
        axes.axis("off")

    return svg(draw, (0.42, 0.17), bare=True)


def distinct_ids(page: str) -> str:
    """Return a page in which no two charts use the same id."""
    numbers = iter(range(page.count("<svg")))

    def renamed(chart: re.Match[str]) -> str:
        prefix = f"c{next(numbers)}-"
        return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", chart[0])

    return re.sub(r"<svg.*?</svg>", renamed, page, flags=re.DOTALL)
