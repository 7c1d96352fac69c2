from pathlib import Path

import pytest

from mlecs_lightning.report.drawing.charts import Curve
from mlecs_lightning.report.drawing.series import Reader, mean_curve, of_metric
from mlecs_lightning.report.parts import Setting, arrange
from mlecs_lightning.report.results.reading import read_runs
from mlecs_lightning.report.sections import plots
from tests.unit.report.run_files import CLIENTS, a_config, a_history, whole, write_run


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    whole(tmp_path / "version_0", seed=1, score=0.4)
    whole(tmp_path / "version_1", seed=2, score=0.6)
    (found,) = arrange(read_runs([tmp_path]), reference="MLECS")
    return found


def curve_of(setting: Setting, read: Reader) -> Curve:
    curve = mean_curve(setting.groups[0], read)
    assert curve is not None
    return curve


def test_curves_are_means_over_seeds_at_each_round(setting: Setting) -> None:
    curve = curve_of(setting, of_metric("clients/val/macro_f1"))
    assert curve.x == [1, 2]
    assert curve.y == pytest.approx([0.5, 0.5])
    assert curve.spread == pytest.approx([0.02**0.5] * 2)


def test_rounds_that_one_seed_lacks_are_those_of_the_others(tmp_path: Path) -> None:
    whole(tmp_path / "version_0", seed=1, score=0.4)
    folder = whole(tmp_path / "version_1", seed=2, score=0.6)
    lines = (folder / "metrics.csv").read_text().splitlines()
    (folder / "metrics.csv").write_text("\n".join([lines[0], lines[1], lines[3]]) + "\n")
    (found,) = arrange(read_runs([tmp_path]), reference="MLECS")
    curve = curve_of(found, of_metric("clients/val/macro_f1"))
    assert (curve.x, curve.y) == ([1, 2], pytest.approx([0.4, 0.5]))
    assert curve.spread == pytest.approx([0, 0.02**0.5])


def test_rounds_are_in_order_where_the_first_seed_lacks_an_early_one(tmp_path: Path) -> None:
    folder = whole(tmp_path / "version_0", seed=1, score=0.4)
    lines = (folder / "metrics.csv").read_text().splitlines()
    (folder / "metrics.csv").write_text("\n".join([lines[0], lines[1], lines[3]]) + "\n")
    whole(tmp_path / "version_1", seed=2, score=0.6)
    (found,) = arrange(read_runs([tmp_path]), reference="MLECS")
    curve = curve_of(found, of_metric("clients/val/macro_f1"))
    assert (curve.x, curve.y) == ([1, 2], pytest.approx([0.6, 0.5]))


def test_quality_goes_over_the_bytes_of_both_ways(setting: Setting) -> None:
    curve = curve_of(setting, plots._over_bytes("macro_f1"))
    assert curve.x == [2000, 4000]


def test_volumes_are_means_over_clients(setting: Setting) -> None:
    curve = curve_of(setting, plots._mean_of("clients/.+/[^/]+/volume_diagonal"))
    assert curve.y == pytest.approx([0.5, 0.5])  # 0.4 and 0.6


def test_alignment_shows_each_client_also_below_zero(setting: Setting) -> None:
    section = plots.alignment(setting)
    assert section is not None
    assert [panel.caption for panel in section.panels] == list(CLIENTS)
    drawn = {
        client: curve_of(setting, plots._mean_of(f"clients/{client}/[^/]+/cosine")).y
        for client in CLIENTS
    }
    assert list(drawn.values()) == [pytest.approx([0.5, 0.5]), pytest.approx([-0.2, -0.2])]


def test_aggregation_errors_of_a_summary_are_placed_only_if_there_is_one_a_round(
    tmp_path: Path,
) -> None:
    folder = whole(tmp_path / "v")
    (run,) = read_runs([folder])
    assert plots._aggregation_error(run) == [(1, 1, 0.02), (2, 2, 0.01)]
    (folder / "metrics.csv").unlink()
    (run,) = read_runs([folder])
    assert plots._aggregation_error(run) == [(1, 1, 0.02), (2, 2, 0.01)]
    assert run.summary is not None
    del run.summary["aggregation_error"][0]  # type: ignore[index]
    assert plots._aggregation_error(run) == []


def test_an_aggregation_without_error_is_not_drawn(tmp_path: Path) -> None:
    history = [row | {"aggregate/error": 0.0} for row in a_history()]
    folder = write_run(tmp_path / "v", config=a_config("CDCCA"), history=history)
    (found,) = arrange(read_runs([folder]), reference="CDCCA, unfinished")
    assert plots.aggregation(found) is None


def test_of_many_clients_some_are_shown_and_the_page_says_so(tmp_path: Path) -> None:
    history = a_history(1)
    history[1] |= {f"clients/client_{n:03}/val/loss": 1.0 for n in range(100)}
    folder = write_run(tmp_path / "v", config=a_config(), history=history)
    (found,) = arrange(read_runs([folder]), reference="MLECS")
    score, loss = plots.learning(found)
    assert len(loss.panels) == 1 + 24  # the server has no loss here
    assert "24 of 102 clients" in score.note


def test_panels_of_a_section_share_their_axis(setting: Setting) -> None:
    score, _ = plots.learning(setting)
    assert [panel.caption for panel in score.panels] == [
        *("mean of the clients", "server", "kitchen", "hall")
    ]
    ticks = {
        tuple(line for line in panel.chart.split("\n") if ">0." in line) for panel in score.panels
    }
    assert len(ticks) == 1


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [((5.0, 10.0), [5, 10]), ((7.0, 20.0), [7, 20]), ((None, 20.0), [20]), ((None, None), None)],
)
def test_quality_goes_over_the_seconds_of_the_rounds_that_were_timed(
    tmp_path: Path, seconds: tuple[float | None, ...], expected: list[float] | None
) -> None:
    history = a_history()
    for row, spent in zip(history[1:], seconds, strict=True):
        row.pop("seconds")
        row |= {} if spent is None else {"seconds": spent}
    folder = write_run(tmp_path / "v", config=a_config(), history=history)
    (found,) = arrange(read_runs([folder]), reference="MLECS")
    section = plots.quality_over_time(found)
    assert (section is None) == (expected is None)
    if section is not None:
        assert curve_of(found, plots._over_seconds("macro_f1")).x == expected
        assert "A line of one seed has no spread." in section.note


def test_only_lines_of_several_seeds_have_a_spread(setting: Setting) -> None:
    section = plots.quality_over_time(setting)
    assert section is not None
    assert "bands one standard deviation" in section.note
    assert "no spread" not in section.note
