import re

from mlecs_lightning.report.drawing.charts import Curve, curves
from mlecs_lightning.report.drawing.svg import COLOURS, distinct_ids, swatch


def test_series_of_one_colour_differ_in_their_dashes() -> None:
    first, ninth = swatch(1), swatch(1 + COLOURS)
    assert "dasharray" not in first
    assert "dasharray" in ninth
    assert all("--series-1" in chart for chart in (first, ninth))


def test_no_two_charts_of_a_page_share_an_id() -> None:
    chart = curves([Curve(0, [1, 2], [0.1, 0.2], [0.0, 0.1])], x="rounds")
    page = distinct_ids(f"<p id='a'>{chart}{chart}</p>")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 2
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert used == set(ids)
