import subprocess
import sys
from pathlib import Path

import pytest

from mlecs_lightning.__main__ import main
from tests.unit.report.run_files import whole


def test_a_page_is_written_where_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = str(whole(tmp_path / "version_0"))
    assert main(["report", folder]) == 0
    assert main(["report", folder, "--format", "md"]) == 0
    assert main(["report", folder, "--output", "a.md"]) == 0
    assert main(["report", folder, "--output", "b.txt", "--format", "md"]) == 0
    assert capsys.readouterr().out.split() == ["report.html", "report.md", "a.md", "b.txt"]
    texts = [Path(name).read_text() for name in ("report.md", "a.md", "b.txt")]
    assert len(set(texts)) == 1
    assert texts[0].startswith("# MLECS on URFall")
    assert Path("report.html").read_text().startswith("<!DOCTYPE html>")


def test_faults_are_printed_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole(tmp_path / "version_0")
    for args, said in {
        ("nowhere",): "nowhere: there is no such folder",
        ("version_0", "--reference", "X"): "--reference 'X'",
        ("version_0", "--output", "no/where.html"): "--output: cannot write no/where.html",
    }.items():
        assert main(["report", *args]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert said in error
    assert not list(tmp_path.glob("*.html"))


def test_a_report_starts_without_torch_and_lightning(tmp_path: Path) -> None:
    folder = whole(tmp_path / "version_0", "ECLM")  # its hook is loaded, too
    program = (
        "import sys; from mlecs_lightning.__main__ import main; "
        f"main(['report', {str(folder)!r}, '--output', {str(tmp_path / 'r.html')!r}]); "
        "print(*sorted({'torch', 'transformers', 'lightning', 'peft', 'sklearn'} & "
        "set(sys.modules))); assert 'mlecs_lightning.algorithms.eclm.report' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1:] == [""]


def test_the_shim_of_a_checkout_knows_it(repo_root: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(repo_root / "cli.py"), "report", str(tmp_path / "gone")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "gone: there is no such folder" in done.stderr
