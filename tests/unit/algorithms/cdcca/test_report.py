from pathlib import Path

from mlecs_lightning.algorithms.cdcca.report import report_sections
from mlecs_lightning.report.page import to_html
from mlecs_lightning.report.parts import Setting, arrange
from mlecs_lightning.report.results.reading import read_runs
from tests.unit.report.run_files import a_config, a_history, a_summary, write_run


def a_run(folder: Path, seed: int, sent: float) -> Path:
    history = a_history(2)
    for n in (1, 2):
        history[n] |= {"clients/hall/uts/looked_at": 1000.0 * n, "clients/hall/uts/sent": sent * n}
    sampling = {"tokens": 3, "encoder_passes": 1, "language_model_passes": 17}
    summary = a_summary("CDCCA", seed, rounds=2, sampling=sampling)
    write_run(
        folder, config=a_config("CDCCA", seed, max_rounds=2), summary=summary, history=history
    )
    return folder


def settings(*folders: Path) -> list[Setting]:
    runs = read_runs(list(folders))
    return arrange(runs, reference=runs[0].algorithm)


def test_a_device_s_choice_and_its_cost(tmp_path: Path) -> None:
    folders = [a_run(tmp_path / str(seed), seed, 100.0 * seed) for seed in (1, 2)]
    (setting,) = settings(*folders)
    (section,) = report_sections(setting, setting.groups)
    (grid,) = section.grids
    assert [[cell.text for cell in row] for row in grid.rows] == [
        ["hall", "1,500", "225", "0.15", "1", "17"]
    ]
    runs = read_runs(folders)
    assert "Sampling on the devices" in to_html(runs, reference=runs[0].algorithm)


def test_runs_without_sampling_have_no_section(tmp_path: Path) -> None:
    config, summary = a_config("CDCCA", 1, max_rounds=2), a_summary("CDCCA", 1, rounds=2)
    write_run(tmp_path / "run", config=config, summary=summary, history=a_history(2))
    (setting,) = settings(tmp_path / "run")
    assert report_sections(setting, setting.groups) == []
