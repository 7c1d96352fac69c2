import sys
from pathlib import Path

import pytest

from mlecs_lightning.report.hooks import algorithm_sections
from mlecs_lightning.report.page import to_html, to_markdown_page
from mlecs_lightning.report.parts import Section, arrange
from mlecs_lightning.report.results.reading import Run, read_runs
from tests.unit.report.run_files import a_config, a_history, a_summary, whole, write_run

HOOK = """
from mlecs_lightning.report.parts import Section

def report_sections(setting, groups, *, charts):
    labels = ", ".join(group.label for group in groups)
    return [Section("Of my own", f"{labels} of {len(setting.groups)}; charts: {charts}")]
"""


def a_package(root: Path, name: str, files: dict[str, str]) -> None:
    """Write a package."""
    for file, text in {"__init__.py": "", **files}.items():
        path = root / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def runs_of(folder: Path, class_path: str) -> list[Run]:
    """Return a run of an algorithm from outside of this package, and one of FedAvg."""
    config = a_config("Other")
    config["algorithm"]["class_path"] = class_path
    write_run(folder / "own", config=config, summary=a_summary("Other"), history=a_history())
    return read_runs([folder / "own", whole(folder / "fedavg", "FedAvg")])


def sections_of(runs: list[Run], *, charts: bool = True) -> list[Section]:
    (setting,) = arrange(runs, reference="Other")
    return algorithm_sections(setting, charts=charts)


@pytest.mark.parametrize(
    ("class_path", "package", "files"),
    [
        ("hook_a.algorithm.Other", "hook_a", {"algorithm.py": "class Other: ..."}),
        (
            "hook_b.Other",
            "hook_b/inner",
            {"../__init__.py": "if 0:\n from .inner.code import Mine as Other", "code.py": ""},
        ),
        (
            "hook_c.Other",
            "hook_c",
            {"__init__.py": "from hook_c.code import Other", "code.py": "import nothing_like_this"},
        ),
    ],
)
def test_a_package_from_outside_adds_its_sections_without_being_imported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    class_path: str,
    package: str,
    files: dict[str, str],
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    a_package(tmp_path, package, {"report.py": HOOK, **files})
    runs = runs_of(tmp_path / "runs", class_path)
    (section,) = sections_of(runs, charts=False)
    assert (section.title, section.note) == ("Of my own", "Other of 2; charts: False")
    assert "<h3>Of my own</h3>" in to_html(runs)
    assert "### Of my own" in to_markdown_page(runs)
    assert class_path.split(".")[0] not in sys.modules


def test_a_package_without_the_hook_adds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    a_package(tmp_path, "hook_d", {"code.py": "", "report.py": "sections = 1"})
    assert sections_of(runs_of(tmp_path / "runs", "hook_d.code.Other")) == []
    (tmp_path / "hook_module.py").write_text("class Other: ...")
    (tmp_path / "report.py").write_text("raise RuntimeError")  # beside it, yet in no package
    assert sections_of(runs_of(tmp_path / "more", "hook_module.Other")) == []


@pytest.mark.parametrize(
    ("class_path", "reason"),
    [
        ("hook_gone.code.Other", "no module 'hook_gone.code'"),
        ("hook_e.gone.Other", "no module 'hook_e.gone'"),
        ("hook_e.code.Other", "no module named 'hook_gone'"),
        ("..Other", "no module '.'"),
    ],
)
def test_what_cannot_be_loaded_is_told_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, class_path: str, reason: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    a_package(tmp_path, "hook_e", {"code.py": "", "report.py": "import hook_gone"})
    (section,) = sections_of(runs_of(tmp_path / "runs", class_path))
    assert section.title == "Missing sections"
    assert f"{class_path} ({reason})".lower() in section.note.lower()
    assert "hook_e.report" not in sys.modules


@pytest.mark.parametrize("class_path", ["ECLM", "mlecs_lightning.ECLM", ""])
def test_public_and_bare_names_lead_to_the_algorithm(tmp_path: Path, class_path: str) -> None:
    config = a_config("ECLM")
    config["algorithm"]["class_path"] = class_path
    history = a_history()
    for row in history[1:]:
        row["clients/hall/submodel/modules"] = 2
    write_run(tmp_path / "v", config=config, summary=a_summary("ECLM"), history=history)
    titles = [section.title for section in sections_of(read_runs([tmp_path / "v"]))]
    assert titles[:1] == ["Sub-models of the devices"]
