"""The built package in an empty folder: what somebody without a checkout types first."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

QUICK = ["--trainer.max_rounds", "1", "--trainer.fast_dev_run", "false"]
STEPS = ["--algorithm.init_args.steps", "{warmup: 1, public: 1, private: 1, server: 1}"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Path:
    """Folder of programs of a fresh environment that holds the wheel; dependencies are ours."""
    folder = tmp_path_factory.mktemp("install")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheels = ["wheel", "--no-deps", "--wheel-dir", str(folder / "wheel"), str(repo_root)]
    subprocess.run([*pip, *wheels], check=True)
    (wheel,) = (folder / "wheel").glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    site = next((folder / "env").rglob("site-packages"))
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    # After the wheel's own folder on the path, so the checkout that is installed there is not used.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "env" / "bin"


@pytest.mark.slow
def test_a_wheel_trains_and_reports_from_an_empty_folder(
    installed: Path, tmp_path: Path, repo_root: Path
) -> None:
    there = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def mlecs(*words: str) -> str:
        command = [str(installed / "python"), "-m", "mlecs_lightning", *words]
        ran = subprocess.run(command, cwd=tmp_path, env=there, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    where = "import mlecs_lightning as m; print(m.__file__)"
    found = subprocess.run(
        [str(installed / "python"), "-c", where],
        cwd=tmp_path,
        env=there,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(found.strip()).is_relative_to(installed.parent)
    assert "quickstart" in mlecs("configs")
    printed = mlecs("fit", "--config", "quickstart", *QUICK, *STEPS)
    assert "mean of clients" in printed
    mlecs("report", "runs/quickstart/version_0")
    assert (tmp_path / "report.html").stat().st_size > 10_000
    own = mlecs("configs", "quickstart")
    assert own == (repo_root / "configs" / "quickstart.yaml").read_text()
