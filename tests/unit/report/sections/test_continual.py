from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlecs_lightning.algorithms import CDCCA
from mlecs_lightning.clients import ClientSettings
from mlecs_lightning.data import DomainStream
from mlecs_lightning.report.drawing.charts import Band
from mlecs_lightning.report.parts import Section, Setting, arrange
from mlecs_lightning.report.results.reading import ReportError, read_runs
from mlecs_lightning.report.sections.continual import Stretch, bands_of, continual, stretches
from tests.unit.report.run_files import a_config, a_history, a_summary, write_run

PHASES = {"kitchen": [[0, "day"], [2, "night"], [4, "day"]], "hall": [[0, "day"]]}
# Scores after each of six rounds.
DAY = [0.5, 0.6, 0.4, 0.3, 0.5, 0.7]
NIGHT = [0.1, 0.2, 0.6, 0.8, 0.7, 0.6]


def streamed(present: float, forgetting: float) -> dict[str, Any]:
    scores = {"present": present, "final": 0.65, "forgetting": forgetting}
    kitchen = {"phases": PHASES["kitchen"], "macro_f1": scores | {"backward_transfer": -0.2}}
    hall = {"phases": PHASES["hall"], "macro_f1": {"present": 0.9, "final": 0.9}}
    means = {"macro_f1": scores | {"backward_transfer": -0.2}}
    return {"clients": {"kitchen": kitchen, "hall": hall}, "mean": means}


def a_stream_run(
    folder: Path, seed: int = 1, present: float = 0.6, algorithm: str = "CDCCA"
) -> Path:
    history = a_history(6)
    for n, (day, night) in enumerate(zip(DAY, NIGHT, strict=True), start=1):
        shift = 0.1 * (seed - 1)
        history[n] |= {
            "clients/kitchen/domains/day/macro_f1": day + shift,
            "clients/kitchen/domains/night/macro_f1": night + shift,
            "clients/kitchen/stream/present/macro_f1": (night if n in (3, 4) else day) + shift,
            "clients/hall/domains/day/macro_f1": 0.9,
            "clients/hall/stream/present/macro_f1": 0.9,
            "stream/present/macro_f1": 0.7,
        }
    summary = a_summary(algorithm, seed, rounds=6, stream=streamed(present, 0.1 * seed))
    config = a_config(algorithm, seed, max_rounds=6)
    return write_run(folder, config=config, summary=summary, history=history)


def setting_of(*folders: Path) -> Setting:
    runs = read_runs(folders)
    (found,) = arrange(runs, reference=runs[0].algorithm)
    return found


def rows_of(section: Section, grid: int = 0) -> list[list[str]]:
    return [[each.text for each in line] for line in section.grids[grid].rows]


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    """Two seeds of one algorithm, and one of another."""
    return setting_of(
        a_stream_run(tmp_path / "a", 1, 0.6),
        a_stream_run(tmp_path / "b", 2, 0.7),
        a_stream_run(tmp_path / "c", 1, 0.8, "Standalone"),
    )


def test_runs_without_a_schedule_have_no_such_section(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "v", config=a_config(), summary=a_summary(), history=a_history())
    assert continual(setting_of(folder)) == []


def test_stretches_count_from_one_and_end_where_the_next_begins(setting: Setting) -> None:
    assert stretches(setting) == {
        "kitchen": [Stretch(1, 2, "day"), Stretch(3, 4, "night"), Stretch(5, 6, "day")],
        "hall": [Stretch(1, 6, "day")],
    }


def test_a_stretch_that_no_run_has_reached_is_left_out(tmp_path: Path) -> None:
    summary = a_summary(rounds=3, stream=streamed(0.6, 0.1))
    folder = write_run(tmp_path / "v", config=a_config(max_rounds=3), summary=summary)
    assert stretches(setting_of(folder))["kitchen"] == [
        *(Stretch(1, 2, "day"), Stretch(3, 3, "night"))
    ]


def test_a_client_whose_data_stay_has_no_borders(setting: Setting) -> None:
    known = stretches(setting)
    assert bands_of(known["hall"]) == []
    assert bands_of(known["kitchen"]) == [Band(1, 2), Band(3, 4), Band(5, 6)]
    coloured = bands_of(known["kitchen"], {"day": 0, "night": 1})
    assert [band.style for band in coloured] == [0, 1, 0]


def test_the_table_has_means_over_seeds_and_the_best_of_each_column(setting: Setting) -> None:
    summary, present, every = continual(setting)
    assert [section.title for section in (summary, present, every)] == [
        "Changing data: macro-F1",
        "Where the client is: macro-F1 over rounds",
        "On every domain: macro-F1",
    ]
    assert rows_of(summary) == [
        [
            *("CDCCA", "2", "0.650 ± 0.071", "0.650 ± 0.000", "0.150 ± 0.071"),
            *("-0.200 ± 0.000", "0.600 ± 0.000", "1 kB", "3 kB"),
        ],
        [
            "Standalone",
            "1 seed, no spread",
            "0.800",
            "0.650",
            "0.100",
            "-0.200",
            "0.600",
            "1 kB",
            "3 kB",
        ],
    ]
    marked = [[each.best for each in line] for line in summary.grids[0].rows]
    # The most of the present, the least that was forgotten; where all are equal, none.
    assert [[i for i, each in enumerate(line) if each] for line in marked] == [[], [2, 4]]


def test_by_client_the_domains_and_the_scores_of_each(setting: Setting) -> None:
    lines = rows_of(continual(setting)[0], grid=1)
    assert lines[0][:5] == [
        *("kitchen", "day (1), night (3), day (5)", "CDCCA", "2", "0.650 ± 0.071")
    ]
    assert lines[2] == [
        *("hall", "day (1)", "CDCCA", "2", "0.900 ± 0.000", "0.900 ± 0.000", "n/a", "n/a"),
        "0.600 ± 0.000",
    ]
    assert len(lines) == 4


def test_one_client_is_named_in_the_note(tmp_path: Path) -> None:
    alone = streamed(0.6, 0.1)
    del alone["clients"]["hall"]
    folder = write_run(tmp_path / "v", config=a_config(), summary=a_summary(rounds=6, stream=alone))
    (summary,) = continual(setting_of(folder))
    (grid,) = summary.grids
    assert grid.caption == ""
    assert "of kitchen, with their first rounds: day (1), night (3), day (5)." in summary.note


def test_every_domain_is_shown_at_the_end_of_each_stretch(setting: Setting) -> None:
    every = continual(setting)[2]
    assert [(c.over, c.name) for c in every.grids[0].columns[1:]] == [
        *(("CDCCA", "day"), ("CDCCA", "night"), ("Standalone", "day"), ("Standalone", "night"))
    ]
    # hall knows one domain. The second seed is better by 0.1 everywhere.
    assert rows_of(every) == [
        ["kitchen, rounds 1 to 2: day", "0.650", "0.250", "0.600", "0.200"],
        ["kitchen, rounds 3 to 4: night", "0.350", "0.850", "0.300", "0.800"],
        ["kitchen, rounds 5 to 6: day", "0.750", "0.650", "0.700", "0.600"],
    ]
    assert every.grids[0].rows[1][2].shade == pytest.approx(0.85)
    assert [panel.caption for panel in every.panels] == ["CDCCA: kitchen", "Standalone: kitchen"]
    assert every.legend == [(0, "day"), (1, "night")]


def test_the_chart_of_the_present_has_the_borders(setting: Setting) -> None:
    present = continual(setting)[1]
    captions = ["mean of the clients", "kitchen: day (1), night (3), day (5)", "hall: day (1)"]
    assert [panel.caption for panel in present.panels] == captions
    dashed = [panel.chart.count("stroke-dasharray") for panel in present.panels]
    assert dashed == [0, 2, 0]


def test_without_charts_there_are_the_tables_alone(setting: Setting) -> None:
    sections = continual(setting, charts=False)
    assert not [panel for section in sections for panel in section.panels]
    assert [len(section.grids) for section in sections] == [2, 1]


def test_an_unfinished_run_has_its_curves(tmp_path: Path) -> None:
    folder = a_stream_run(tmp_path / "v")
    (folder / "summary.json").unlink()
    (present,) = continual(setting_of(folder))
    assert [panel.caption for panel in present.panels][1:] == ["kitchen", "hall"]


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ([], "'stream' is"),
        ({"clients": {"kitchen": {"phases": [0, "day"]}}}, "client 'kitchen': 'phases'"),
        ({"clients": {"kitchen": {}}}, "client 'kitchen': 'phases' is None"),
    ],
)
def test_a_broken_stream_is_refused(tmp_path: Path, broken: object, told: str) -> None:
    folder = write_run(tmp_path / "v", config=a_config(), summary=a_summary(stream=broken))
    with pytest.raises(ReportError, match=told):
        read_runs([folder])


def test_a_real_run_leaves_all_that_the_sections_need(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    device = {"phone": ClientSettings(["pixels", "profile", "fourier"], domains=["bold", "light"])}
    data = tiny.data(partition="domain", schedule=DomainStream(["bold", "light"]))
    algorithm = CDCCA(steps=tiny.steps(warmup=1, public=0, private=1, server=1))
    trainer = tiny.trainer(tmp_path, max_rounds=2, logger=True, check_val_every_n_rounds=1)
    summary = trainer.fit(algorithm, data, tiny.parties(device))
    table, present, every = continual(setting_of(tmp_path / "tiny" / "version_0"))
    assert "bold (1), light (2)." in table.note
    said = summary["stream"]["clients"]["phone"]["macro_f1"]
    assert rows_of(table)[0][2:6] == [
        f"{said[name]:.3f}" for name in ("present", "final", "forgetting", "backward_transfer")
    ]
    assert [panel.caption for panel in present.panels] == ["phone: bold (1), light (2)"]
    # What is present at the end of each stretch, on the diagonal, has the mean of the table.
    (_, bold, _), (_, _, light) = every.grids[0].rows
    assert bold.shade is not None
    assert light.shade is not None
    assert (bold.shade + light.shade) / 2 == pytest.approx(said["present"])
