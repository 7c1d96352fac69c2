import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlecs_lightning import ECLM
from mlecs_lightning.algorithms.eclm.derivation import Budget
from mlecs_lightning.algorithms.eclm.report import report_sections
from mlecs_lightning.data import Drift
from mlecs_lightning.data.drift import Shift
from mlecs_lightning.report.page import to_html
from mlecs_lightning.report.parts import Section, Setting, arrange
from mlecs_lightning.report.results.reading import ReportError, read_runs
from tests.unit.report.run_files import a_config, a_history, a_summary, write_run

LIMITS = {"modules": None, "parameters": None, "memory_mib": None}
MASKS = {"kitchen": [[1, 0], [1, 1]], "hall": [[0, 0], [0, 1]]}


def a_device_run(
    folder: Path, seed: int = 1, alarm: int = 3, masks: dict[str, Any] | None = None
) -> Path:
    history = a_history(4)
    for n in range(1, 5):
        for client, count in (("kitchen", 3), ("hall", 2 if n < 3 else 1)):
            history[n] |= {
                f"clients/{client}/submodel/modules": count,
                f"clients/{client}/submodel/parameters": 1000 * count,
                f"clients/{client}/submodel/bytes": 4000 * count,
                f"clients/{client}/drifted": float(client == "kitchen" and n == alarm),
                f"clients/{client}/budget": 0.5 if client == "hall" and n >= 3 else 1.0,
                f"server/derived/{client}": float(n == 1 or n == alarm),
            }
    config = a_config("ECLM", seed, max_rounds=4)
    budget, own = LIMITS | {"modules": 0.5}, LIMITS | {"parameters": 9000, "memory_mib": 2.5}
    config["algorithm"]["init_args"] = {"budget": budget, "budgets": {"hall": own}}
    phases = {"kitchen": [[0, "all"], [2, "without depth"]], "hall": [[0, "all"]]}
    stream = {"clients": {name: {"phases": own} for name, own in phases.items()}, "mean": {}}
    summary = a_summary("ECLM", seed, rounds=4, stream=stream)
    summary["communication"]["edge_parameter_bytes"] = {"kitchen": 20_000, "hall": 16_000}
    write_run(folder, config=config, summary=summary, history=history)
    for client, mask in (MASKS if masks is None else masks).items():
        (folder / "adapters" / client).mkdir(parents=True)
        said = json.dumps({"modules": 2, "mask": mask})
        (folder / "adapters" / client / "modules.json").write_text(said)
    return folder


def setting_of(*folders: Path) -> Setting:
    runs = read_runs(folders)
    (found,) = arrange(runs, reference=runs[0].algorithm)
    return found


def devices(setting: Setting, *, charts: bool = True) -> list[Section]:
    return report_sections(setting, setting.groups, charts=charts)


def rows_of(section: Section) -> list[list[str]]:
    return [[each.text for each in line] for line in section.grids[0].rows]


def test_other_algorithms_have_no_such_section(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "v", config=a_config(), summary=a_summary(), history=a_history())
    assert devices(setting_of(folder)) == []


def test_the_table_says_what_each_device_has_at_the_end(tmp_path: Path) -> None:
    table, *_ = devices(setting_of(a_device_run(tmp_path / "v")))
    assert rows_of(table) == [
        ["kitchen", "modules 0.5", "3 of 4", "3,000", "12 kB", "20 kB", "3", "1, 3"],
        [
            *("hall", "parameters 9000, memory_mib 2.5; at the end 0.5 of it"),
            *("1 of 4", "1,000", "4 kB", "16 kB", "never", "1, 3"),
        ],
    ]


def test_rounds_that_differ_by_seed_say_in_how_many(tmp_path: Path) -> None:
    setting = setting_of(a_device_run(tmp_path / "a"), a_device_run(tmp_path / "b", 2, alarm=4))
    table, *_ = devices(setting)
    assert rows_of(table)[0][-2:] == ["3 (1/2), 4 (1/2)", "1, 3 (1/2), 4 (1/2)"]


def test_what_older_runs_have_not_logged_is_left_open(tmp_path: Path) -> None:
    folder = a_device_run(tmp_path / "v", masks={})
    text = (folder / "metrics.csv").read_text()
    for name in ("server/derived/", "submodel/bytes", "/budget"):
        text = text.replace(name, "something/else")
    (folder / "metrics.csv").write_text(text)
    table, sizes = devices(setting_of(folder))
    assert rows_of(table)[0] == [*("kitchen", "modules 0.5", "3", "3,000", "-", "20 kB", "3", "-")]
    assert len(sizes.panels) == 2


def test_sizes_have_the_borders_and_the_events(tmp_path: Path) -> None:
    _, sizes, _ = devices(setting_of(a_device_run(tmp_path / "v")))
    kitchen, hall = sizes.panels
    assert (kitchen.caption, hall.caption) == (
        "kitchen: all (1), without depth (3)",
        "hall: all (1)",
    )
    assert [panel.chart.count("stroke-dasharray") for panel in (kitchen, hall)] == [1, 0]
    # An alarm is orange, a derivation green; both are two and one marker, as the rounds say.
    marks = [kitchen.chart.count(f"fill: var(--series-{n})") for n in (1, 2)]
    assert all(marks)
    assert "var(--series-1)" not in hall.chart
    assert [label for _, label in sizes.legend] == ["modules", "drift found", "sub-model derived"]


def test_the_choice_is_a_share_over_the_seeds(tmp_path: Path) -> None:
    other = MASKS | {"kitchen": [[1, 1], [0, 1]]}
    setting = setting_of(a_device_run(tmp_path / "a"), a_device_run(tmp_path / "b", 2, masks=other))
    *_, drawn = devices(setting)
    assert [panel.caption for panel in drawn.panels] == ["kitchen", "hall"]
    assert drawn.grids == ()
    _, choice = devices(setting, charts=False)
    assert rows_of(choice) == [["kitchen", "●○", "○●"], ["hall", "··", "·●"]]
    assert [column.name for column in choice.grids[0].columns] == ["device", "layer 1", "layer 2"]


@pytest.mark.parametrize("mask", [None, [], [[]], [1, 2], [[1], [1, 0]], "x", 5])
def test_a_broken_choice_is_refused(tmp_path: Path, mask: object) -> None:
    folder = a_device_run(tmp_path / "v", masks={"kitchen": mask})
    with pytest.raises(ReportError, match=r"modules\.json: 'mask'"):
        devices(setting_of(folder))


def test_a_real_run_leaves_all_that_the_sections_need(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    model = tiny.model(lora={"target_modules": ["c_fc", "mlp.c_proj"]})
    data = tiny.data(schedule=Drift([Shift(1, clients=["hall"], budget=0.5)]))
    algorithm = ECLM(
        modules=4, active=2, budget=Budget(modules=0.5), steps=tiny.steps(warmup=1, server=0)
    )
    trainer = tiny.trainer(tmp_path, max_rounds=2, logger=True)
    trainer.config = {"algorithm": {"init_args": {"budget": {"modules": 0.5}}}}
    summary = trainer.fit(algorithm, data, tiny.parties(server=model, edge=model))
    folder = tmp_path / "tiny" / "version_0"
    runs = read_runs([folder])
    (setting,) = arrange(runs, reference="ECLM")
    table, sizes, choice = devices(setting)
    rows = {line[0]: line for line in rows_of(table)}
    assert list(rows) == ["kitchen", "hall", "study"]
    masks = {
        name: json.loads((folder / "adapters" / name / "modules.json").read_text())["mask"]
        for name in rows
    }
    layers = len(masks["hall"])
    assert rows["kitchen"][1:3] == ["modules 0.5", f"{2 * layers} of {4 * layers}"]
    assert rows["hall"][1:3] == ["modules 0.5; at the end 0.5 of it", f"{layers} of {4 * layers}"]
    assert rows["hall"][-1] == "1, 2"
    assert rows["study"][-2:] == ["never", "1"]
    assert sum(map(sum, masks["hall"])) == layers
    assert len(sizes.panels) == len(choice.panels) == 3
    assert summary["stream"]["clients"]["hall"]["phases"] == [[0, "all"], [1, "budget 0.5"]]
    page = to_html(runs)
    for title in ("Changing data: macro-F1", "Sub-models of the devices", "Choice of modules"):
        assert f"<h3>{title}</h3>" in page
