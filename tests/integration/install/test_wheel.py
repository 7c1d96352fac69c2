"""The built package in an empty folder: what somebody without a checkout types first."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

QUICK = ["--trainer.max_rounds", "1", "--trainer.fast_dev_run", "false"]
STEPS = ["--algorithm.init_args.steps", "{warmup: 1, public: 1, private: 1, server: 1}"]
OPTIONAL = ("sklearn", "scipy", "matplotlib", "tensorboard", "rouge_score", "bert_score", "pandas")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheels = ["wheel", "--no-deps", "--wheel-dir", str(folder), str(repo_root)]
    subprocess.run([*pip, *wheels], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of programs of a fresh environment that holds the wheel; dependencies are ours."""
    folder = tmp_path_factory.mktemp("install")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    venv.create(folder / "env", with_pip=False)
    site = next((folder / "env").rglob("site-packages"))
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    # After the wheel's own folder on the path, so the checkout that is installed there is not used.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "env" / "bin"


@pytest.fixture(scope="module")
def plain(wheel: Path, tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Path:
    """Folder of programs of a fresh environment: the wheel without extras, as pip installs it."""
    folder = tmp_path_factory.mktemp("plain") / "env"
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "-q"]
    pinned = ["-c", str(repo_root / "constraints.txt")]
    subprocess.run([*pip, "install", *pinned, str(wheel)], check=True)
    return folder / "bin"


def runner(programs: Path, folder: Path) -> Callable[..., SimpleNamespace]:
    """Return a function that runs Python of an environment in a folder, without this checkout."""
    there = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*words: str) -> SimpleNamespace:
        command = [str(programs / "python"), *words]
        ran = subprocess.run(command, cwd=folder, env=there, capture_output=True, text=True)
        return SimpleNamespace(code=ran.returncode, out=ran.stdout, err=ran.stderr)

    return run


@pytest.mark.slow
def test_a_wheel_trains_and_reports_from_an_empty_folder(
    installed: Path, tmp_path: Path, repo_root: Path
) -> None:
    run = runner(installed, tmp_path)

    def mlecs(*words: str) -> str:
        ran = run("-m", "mlecs_lightning", *words)
        assert ran.code == 0, ran.err
        return str(ran.out)

    found = run("-c", "import mlecs_lightning as m; print(m.__file__)").out
    assert Path(found.strip()).is_relative_to(installed.parent)
    assert "quickstart" in mlecs("configs")
    printed = mlecs("fit", "--config", "quickstart", *QUICK, *STEPS)
    assert "mean of clients" in printed
    mlecs("report", "runs/quickstart/version_0")
    assert (tmp_path / "report.html").stat().st_size > 10_000
    own = mlecs("configs", "quickstart")
    assert own == (repo_root / "configs" / "quickstart.yaml").read_text()


# Two devices with a sensor of four numbers; no file but this one.
CONFIG = """
seed_everything: 1
trainer: {max_rounds: 1, accelerator: cpu, limit_val_batches: 1, name: own, rouge: false}
data:
  class_path: Manifest
  init_args:
    file: samples.jsonl
    modalities: {sensor: {kind: vector, shape: [4]}}
    instruction: what is it ?
    labels: {rest: [rest], walk: [walk]}
    batch_size: 8
algorithm:
  class_path: MLECS
  init_args: {steps: {warmup: 1, public: 1, private: 1, server: 1}}
server: &model
  backbone: {model: pocket/slm}
  connector: {width: 16, prompt_length: 4}
  max_new_tokens: 6
edge: *model
clients: {kitchen: {modalities: [sensor]}, hall: {modalities: [sensor]}}
"""


def samples() -> str:
    """Return the lines of a manifest: numbers in the file itself."""
    lines = []
    for n in range(48):
        part = ("public", "kitchen", "hall", "test")[n % 4]
        device = part in ("kitchen", "hall")
        line = {
            "id": f"s{n}",
            "split": "train" if device else part,
            "modalities": {"sensor": [n % 3, n % 5, n % 2, 1.0]},
            "target": f"somebody is at {('rest', 'walk')[n // 4 % 2]} .",
            **({"client": part} if device else {}),
        }
        lines.append(json.dumps(line) + "\n")
    return "".join(lines)


@pytest.mark.slow
def test_a_plain_installation_is_a_device_and_names_the_extras(plain: Path, tmp_path: Path) -> None:
    run = runner(plain, tmp_path)

    def mlecs(*words: str) -> SimpleNamespace:
        return run("-m", "mlecs_lightning", *words)

    absent = f"from importlib.util import find_spec as f; print([*map(f, {OPTIONAL!r})])"
    assert run("-c", absent).out == f"{[None] * len(OPTIONAL)}\n"
    assert mlecs("--version").out.startswith("mlecs_lightning ")
    assert "join" in mlecs("--help").out
    device = "import mlecs_lightning.network.join; from mlecs_lightning import load_exported"
    assert run("-c", device).code == 0
    for words, extras in {
        ("keys", "device", "kitchen"): "flower",
        ("report", "."): "report",
        ("sweep", "--config", "quickstart", "--space", "space.yaml"): "sweep",
        ("fit", "--config", "quickstart"): "digits,answers,metrics",
    }.items():
        refused = mlecs(*words)
        assert refused.code == 1
        assert f'pip install "mlecs_lightning[{extras}]"' in refused.err
        assert "Traceback" not in refused.err
    assert list(tmp_path.iterdir()) == [], "nothing was trained"

    # A data set that needs no extra: trained, tested, logged, exported and asked.
    (tmp_path / "samples.jsonl").write_text(samples())
    (tmp_path / "own.yaml").write_text(CONFIG)
    ran = mlecs("fit", "--config", "own.yaml")
    assert ran.code == 0, ran.err
    assert "Rouge-Lsum" not in ran.out
    assert "macro-F1" in ran.out
    assert "metrics.csv alone: a log for TensorBoard needs tensorboard: pip" in ran.err
    folder = tmp_path / "runs" / "own" / "version_0"
    assert (folder / "metrics.csv").is_file()
    assert json.loads((folder / "summary.json").read_text())["left_out"] == ["rouge_lsum"]
    assert mlecs("export", str(folder), "--client", "kitchen", "device").code == 0
    ask = "from mlecs_lightning import load_exported as l; print(l('device').ask(sensor=[1,1,1,1]))"
    assert run("-c", ask).out.strip()
