"""The command `sweep`: real trials in processes, stopped and gone on with."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mlecs_lightning.cli.sweep import read_space, sweep
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.report.results.reading import read_runs

SPACE = """
edge.optimizer.init_args.lr: {low: 1.0e-5, high: 1.0e-2, log: true}
edge.lora.r: [2, 4]
edge.connector.prompt_length: {low: 2, high: 6, step: 2}
"""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "expected keys with their values"),
        ("a: 3", "a: expected a list of values, or a range"),
        ("a: []", "a: expected at least one value"),
        ("a: {low: 1}", "a: expected a list of values, or a range"),
        ("a: {low: 1, high: 2, lag: true}", "a: expected a list of values, or a range"),
        ("a: {low: 2, high: 1}", "a: low must be less than high"),
        ("a: {low: x, high: 1}", "a: expected numbers"),
        ("a: {low: 0, high: 1, log: true}", "a: log needs a positive low"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(text: str, said: str, space: Path) -> None:
    space.write_text(f"b: [1, 2]\n{text}\n" if text[0] == "a" else text)
    with pytest.raises(ConfigurationError, match=f"{space.name}: {said}"):
        read_space(space)


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_stopped(
    space: Path, tiny_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    optuna = pytest.importorskip("optuna")
    folder = tmp_path / "sweep"
    words = ["--config", str(tiny_yaml), "--space", str(space), "--trainer.max_rounds", "3"]

    def study(place: Path) -> Any:  # noqa: ANN401 - a study of optuna
        return optuna.load_study(study_name="sweep", storage=f"sqlite:///{place / 'study.db'}")

    command = [sys.executable, "-m", "mlecs_lightning", "sweep", *words, "--folder", str(folder)]
    with subprocess.Popen(
        [*command, "--trials", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 300
        while not list(folder.glob("trial_000/version_0/checkpoints/round=0000*.ckpt")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "stopped; the same command goes on" in err
    (begun,) = study(folder).trials
    assert begun.state.name == "RUNNING"

    assert sweep([*words, "--folder", str(folder), "--trials", "2"]) == 0
    trials = study(folder).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE"]
    assert trials[0].params == begun.params
    assert not (folder / "trial_000" / "version_1").exists(), "it went on in its own folder"
    runs = read_runs([folder / f"trial_{number:03d}" for number in range(2)])
    for trial, run in zip(trials, runs, strict=True):
        assert (run.rounds, run.finished) == (3, True)
        assert trial.value == run.history[-1]["clients/val/loss"]
        assert run.config["edge"]["optimizer"]["init_args"]["lr"] == pytest.approx(
            trial.params["edge.optimizer.init_args.lr"], rel=1e-12
        )
    assert "best of 2: trial_00" in capsys.readouterr().out
    # Nothing is left to do; another space is another sweep.
    assert sweep([*words, "--folder", str(folder), "--trials", "2"]) == 0
    space.write_text("edge.lora.r: [2, 4]")
    assert sweep([*words, "--folder", str(folder), "--trials", "2"]) == 1
    assert "its sweep has another space" in capsys.readouterr().err
    # The same seed gives the same values, also if it was never stopped.
    space.write_text(SPACE)
    whole = tmp_path / "whole"
    assert sweep([*words, "--folder", str(whole), "--trials", "2"]) == 0
    assert [trial.params for trial in study(whole).trials] == [trial.params for trial in trials]


@pytest.mark.slow
def test_a_key_that_does_not_exist_ends_the_sweep(
    space: Path, tiny_yaml: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    space.write_text(json.dumps({"edge.lora.rank": [2, 4]}))
    words = ["--config", str(tiny_yaml), "--space", str(space), "--folder", str(tmp_path / "s")]
    assert sweep(words) == 1
    err = capfd.readouterr().err
    assert "edge.lora.rank" in err
    assert "trial_000: fit has failed with exit code 1" in err
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["study.db"]
