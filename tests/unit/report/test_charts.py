import re
import xml.etree.ElementTree as ET

from mlecs_lightning.report.charts import (
    Curve,
    Point,
    curves,
    interval,
    limits_of,
    points,
)
from mlecs_lightning.report.svg import swatch

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
