import re
import xml.etree.ElementTree as ET

import pytest

from mlecs_lightning.report.drawing.charts import (
    Band,
    Curve,
    Marks,
    Point,
    cells,
    curves,
    interval,
    limits_of,
    points,
    steps,
)
from mlecs_lightning.report.drawing.svg import swatch

NAMESPACE = "{http://www.w3.org/2000/svg}"


def texts(chart: str) -> list[str]:
    return [text.text or "" for text in ET.fromstring(chart).iter(f"{NAMESPACE}text")]


def a_chart() -> str:
    series = [Curve(0, [1, 2, 3], [0.1, 0.2, 0.3], [0.0, 0.1, 0.0]), Curve(9, [1], [0.5], [0.0])]
    return curves(series, x="rounds", limits=(0.0, 1.0))


def test_a_chart_is_small_well_formed_and_brings_nothing_of_its_own() -> None:
    for chart in (
        a_chart(),
        points([Point(0, 0.0, 0.5, 0.1), Point(1, 4e6, 0.6, 0.0)], x="bytes"),
        interval(0.1, -0.1, 0.3, reach=0.5),
        swatch(3),
    ):
        assert chart.startswith("<svg viewBox=")
        ET.fromstring(chart)
        assert not re.search(r"<style|<script|font-family|http(?!://www\.w3\.org/2000/svg)", chart)
        assert len(chart) < 10_000


def test_colours_are_those_of_the_style_sheet() -> None:
    chart = a_chart()
    assert not re.search(r"#[0-9a-f]{6}", chart)
    used = set(re.findall(r"var\((--[\w-]+)\)", chart))
    assert used == {"--ink", "--grid", "--series-0", "--series-1"}


def test_the_same_input_gives_the_same_bytes() -> None:
    assert a_chart() == a_chart()


def test_rounds_are_whole_and_bytes_have_units() -> None:
    assert {"1", "2", "3", "rounds", "0.0", "1.0"} <= set(texts(a_chart()))
    sent = texts(curves([Curve(0, [0, 3e6], [0, 1], [0, 0])], x="bytes", in_bytes=True))
    assert {"0 B", "1 MB", "3 MB"} <= set(sent)


def test_bytes_of_other_orders_of_magnitude_are_told_apart() -> None:
    def places(chart: str) -> list[float]:
        return [float(x) for x in re.findall(r'<use href="#\w+" x="([\d.]+)"', chart)]

    near = places(points([Point(n, x, 0.5, 0) for n, x in enumerate((0, 1e3, 1e6))], x="b"))
    assert near[1] - near[0] > 10  # a linear axis of a million would put them on one pixel


def test_an_interval_lies_where_its_ends_are() -> None:
    chart = interval(0.1, -0.25, 0.45, reach=0.5)
    width = float(re.findall(r'viewBox="0 0 ([\d.]+)', chart)[0])
    ends = re.findall(r"M ([\d.]+) [\d.]+\nL ([\d.]+) [\d.]+\n\"[^>]*stroke-width: 1.4", chart)
    assert [round(float(x) / width, 3) for x in ends[0]] == [0.25, 0.95]


def test_limits_have_a_margin_and_keep_to_their_floor() -> None:
    low, high = limits_of([0.2, 0.7]) or (0, 0)
    assert low < 0.2
    assert high > 0.7
    assert limits_of([0.01, 0.5], floor=0.0) == (0.0, 0.5 + 0.06 * 0.49)
    flat = limits_of([0.5, 0.5]) or (0, 0)
    assert flat[0] < 0.5 < flat[1]
    assert limits_of([]) is None


def test_stretches_of_rounds_cover_the_axis_with_a_border_between_them() -> None:
    series = [Curve(0, [1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4], [0.0] * 4)]
    plain = curves(series, x="rounds")
    grey = curves(series, x="rounds", bands=[Band(1, 2), Band(3, 3), Band(4, 4)])
    assert "dasharray" not in plain
    assert grey.count("stroke-dasharray") == 2
    assert grey.count("fill: var(--grid)") == 1 + plain.count("fill: var(--grid)")
    coloured = curves(series, x="rounds", bands=[Band(1, 2, 3), Band(3, 4, 5)])
    for style in (3, 5):
        assert f"fill: var(--series-{style}); opacity: 0.1" in coloured
    # The first of four rounds is in the middle of the first quarter.
    left, width = map(
        float, re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)', coloured)[0]
    )
    xs = [float(x) for x in re.findall(r'<use href="#\w+" x="([\d.]+)" [^>]*--series-0', coloured)]
    assert xs == pytest.approx([left + width * n / 8 for n in (1, 3, 5, 7)])
    starts = re.findall(r'd="M ([\d.]+) [^"]*"[^>]*style="fill: var\(--series-[35]\)', coloured)
    assert [float(x) for x in starts] == pytest.approx([left, left + width / 2])


def test_events_stand_at_the_foot_by_kind() -> None:
    series = [Curve(0, [1, 2, 3], [0.1, 0.2, 0.3], [0.0] * 3)]
    chart = curves(series, x="rounds", marks=[Marks(1, [2]), Marks(2, [1, 3])])
    found = re.findall(
        r'<use href="#\w+" x="([\d.]+)" y="([\d.]+)" style="fill: var\((.*?)\)', chart
    )
    by_style: dict[str, list[tuple[str, str]]] = {}
    for x, y, style in found:
        by_style.setdefault(style, []).append((x, y))
    assert [len(by_style[f"--series-{n}"]) for n in range(3)] == [3, 1, 2]
    assert by_style["--series-1"][0][0] == by_style["--series-0"][1][0]
    heights = [{float(y) for _, y in by_style[f"--series-{n}"]} for n in (1, 2)]
    assert heights[0] > heights[1] or min(heights[0]) > max(heights[1])


def test_values_of_a_setting_are_its_ticks_and_its_runs_are_dots() -> None:
    line = Curve(0, [2, 4, 8], [0.1, 0.2, 0.3], [0.0] * 3, [(2, 0.05), (2, 0.15), (4, 0.2)])
    chart = steps([line])
    assert {"2", "4", "8"} <= set(texts(chart))
    assert "6" not in texts(chart)
    assert len(re.findall(r"<use [^>]*var\(--series-0\)[^>]*opacity: 0\.4", chart)) == 3
    wide = steps([Curve(0, [0.01, 0.1, 1], [0.1, 0.2, 0.3], [0.0] * 3)])
    xs = [
        float(x)
        for x in re.findall(r'<use href="#\w+" x="([\d.]+)" y="[\d.]+" style="fill: var\(--s', wide)
    ]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.1)  # a logarithmic axis
    assert {"0.01", "0.1", "1"} <= set(texts(wide))
    sent = steps([Curve(0, [1, 2], [0, 3e6], [0.0] * 2)], in_bytes=True)
    assert {"0 B", "800 kB"} <= set(texts(sent))


def test_a_grid_of_cells_has_a_shade_for_each_value() -> None:
    chart = cells([[1, 0, 0.5], [1, 1, 0]], x="module", y="layer")
    full = re.findall(r'<path d="([^"]*)"[^>]*style="fill: var\(--series-0\)', chart)
    assert sorted(path.count("M ") for path in full) == [1, 3]
    empty = re.findall(r'<path d="([^"]*)"[^>]*style="fill: var\(--grid\); opacity: 0.5', chart)
    assert [path.count("M ") for path in empty] == [2]
    assert {"1", "2", "3", "module", "layer"} <= set(texts(chart))
    assert not [text for text in texts(chart) if "." in text]
