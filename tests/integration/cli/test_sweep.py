"""The command `sweep`: real trials in processes, stopped and gone on with."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mlecs_lightning.callbacks.monitor import Monitor
from mlecs_lightning.checkpoints.checkpoint import save_checkpoint
from mlecs_lightning.cli.sweep import last_value, read_space, sweep
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.report.results.reading import read_runs

LOSS = "clients/val/loss"
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
        ("a: {low: 1, high: 9, step: 0}", "a: step must be above 0"),
        ("a: [1", ""),
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


def test_a_mode_in_which_the_worst_is_the_best_is_refused(
    space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    words = ["--config", "quickstart", "--space", str(space), "--folder", str(tmp_path / "s")]
    assert sweep([*words, "--monitor", "clients/val/macro_f1"]) == 1
    said = "--mode is min, but a larger clients/val/macro_f1 is better: set --mode to max"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_the_value_is_that_of_the_last_round_which_has_it(tmp_path: Path) -> None:
    """Also where it is no number: the round before has not the value of the run."""
    history = [{"round": 0, LOSS: 1.0}, {"round": 1, LOSS: math.nan}, {"round": 2}]
    for done in (1, 2, 3):
        state = {"history": history[:done]}
        save_checkpoint(tmp_path / "checkpoints", state, round=done - 1)
    save_checkpoint(tmp_path / "checkpoints", {"history": []}, round=3, complete=False)
    assert math.isnan(last_value(tmp_path, Monitor(LOSS)))
    with pytest.raises(ConfigurationError, match=r"--monitor 'val/lost' .* \['clients/val/loss'\]"):
        last_value(tmp_path, Monitor("val/lost"))


def test_a_trial_without_checkpoints_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"leave trainer\.enable_checkpointing true"):
        last_value(tmp_path, Monitor(LOSS))


def test_a_trial_that_diverged_has_failed_and_the_sweep_goes_on(
    space: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    optuna = pytest.importorskip("optuna")
    folder, losses = tmp_path / "s", iter([math.nan, 0.5])

    def train(command: list[str]) -> int:
        """Leave what a `fit` without metrics.csv leaves; a real one diverges when it likes."""
        name = command[command.index("--trainer.name") + 1]
        history = [{"round": 0, LOSS: 0.1}, {"round": 1, LOSS: next(losses)}]
        checkpoints = folder / name / "version_0" / "checkpoints"
        save_checkpoint(checkpoints, {"history": history}, round=1)
        return 0

    monkeypatch.setattr("mlecs_lightning.cli.sweep._run", train)
    words = ["--config", "quickstart", "--space", str(space), "--folder", str(folder)]
    assert sweep([*words, "--trials", "2"]) == 0
    said = capsys.readouterr()
    assert "trial_000: has failed, clients/val/loss is nan" in said.err
    assert "best of 1: trial_001, clients/val/loss 0.5000" in said.out
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]


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
