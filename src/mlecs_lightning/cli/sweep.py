"""The command ``sweep``: searches for good settings with Optuna, one `fit` after another."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mlecs_lightning.callbacks.monitor import Monitor, check_mode, unknown_value
from mlecs_lightning.checkpoints.checkpoint import (
    CheckpointError,
    checkpoint_of,
    load_checkpoint,
)
from mlecs_lightning.errors import ConfigurationError, FaultList
from mlecs_lightning.extras import Need, require
from mlecs_lightning.federated.monitoring import DEFAULT_MONITOR
from mlecs_lightning.storage.folders import numbered_folders
from mlecs_lightning.storage.paths import expanded
from mlecs_lightning.storage.yaml_text import parse_yaml

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

__all__ = ["last_value", "read_space", "sweep"]

_RANGE = {"low", "high", "log", "step"}
_STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM}
"""Exit codes of a `fit` that was stopped: after it has saved, or before it has begun."""


def sweep(words: list[str]) -> int:
    """Run ``sweep --config X --space Y``.

    Args:
        words: The words after ``sweep``.

    Returns:
        0; 1 if no trial has succeeded or something is wrong with the arguments, which is printed;
        that of `fit` if it was stopped by a signal.
    """
    parser = argparse.ArgumentParser(
        prog="mlecs sweep",
        allow_abbrev=False,
        description="Search for good settings: train with the values that Optuna suggests, and "
        "compare a validation value of the last round. Options that are not listed here go to "
        "`fit`. The same command goes on where it was stopped.",
    )
    parser.add_argument(
        "--config", required=True, action="append", help="the configuration, as for fit"
    )
    parser.add_argument(
        "--space",
        required=True,
        type=Path,
        help="a YAML file with a line for each key: a list of values, or {low: 1.0e-5, high: "
        "1.0e-3, log: true}, or {low: 1, high: 9, step: 2}",
    )
    parser.add_argument("--trials", type=int, default=20, help="number in all; default: 20")
    parser.add_argument(
        "--folder", type=Path, help="where trials and study.db are kept; default: sweeps/CONFIG"
    )
    parser.add_argument(
        "--monitor",
        default=DEFAULT_MONITOR,
        help=f"the value of a round to compare; default: {DEFAULT_MONITOR}",
    )
    parser.add_argument("--mode", choices=("min", "max"), default="min", help="default: min")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search; default: 0")
    given, rest = parser.parse_known_args(words)
    try:
        return _Sweep(given, rest).run()
    except (CheckpointError, ConfigurationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def read_space(path: Path) -> dict[str, Any]:
    """Return the space of a sweep: for each key a list of values, or a range.

    Raises:
        ConfigurationError: If the file cannot be read, or a key has neither; all faults at once.
    """
    try:
        space = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"--space {path}: {error}") from error
    if not isinstance(space, dict) or not space:
        raise ConfigurationError(f"--space {path}: expected keys with their values, got {space!r}")
    faults = FaultList()
    for key, values in space.items():
        if fault := _fault(values):
            faults.append(f"--space {path}: {key}: {fault}, got {values!r}")
    faults.raise_any()
    return space


def last_value(run: Path, monitor: Monitor) -> float:
    """Return the value of the last round that has it, which need not be finite.

    It is read from the checkpoint, because metrics.csv is that of one logger among others.

    Args:
        run: The run folder.
        monitor: Names the value.

    Raises:
        ConfigurationError: If there is no checkpoint, or no round has the value; names those that
            there are.
        CheckpointError: If the checkpoint is damaged.
    """
    try:
        path = checkpoint_of(run)
    except CheckpointError as error:
        raise ConfigurationError(
            "sweep: the value to compare is read from the checkpoint of a trial: leave "
            f"trainer.enable_checkpointing true and trainer.fast_dev_run false ({error})"
        ) from error
    history: list[dict[str, float]] = load_checkpoint(path)["history"]
    values = [row[monitor.name] for row in history if monitor.name in row]
    if not values:
        known = {key for row in history for key in row if "/val/" in key}
        raise unknown_value("--monitor", monitor.name, known)
    return float(values[-1])


def _fault(values: object) -> str:
    """Return what is wrong with the values of a key; empty if nothing is."""
    if isinstance(values, list):
        return "" if values else "expected at least one value"
    if not isinstance(values, dict) or not {"low", "high"} <= values.keys() <= _RANGE:
        return f"expected a list of values, or a range with low and high, of {sorted(_RANGE)}"
    numbers = [values["low"], values["high"], values.get("step", 1)]
    if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        return "expected numbers"
    if not values["low"] < values["high"]:
        return "low must be less than high"
    if values.get("step", 1) <= 0:
        return "step must be above 0"
    if values.get("log") and (values["low"] <= 0 or "step" in values):
        return "log needs a positive low and no step"
    return ""


class _Sweep:
    """One sweep: its arguments, and its study in ``study.db``."""

    def __init__(self, given: argparse.Namespace, rest: list[str]) -> None:
        require(Need("mlecs sweep", "sweep"))
        if given.trials < 1:
            raise ConfigurationError(f"--trials must be at least 1, got {given.trials}")
        self.given, self.rest = given, rest
        self.space = read_space(expanded(given.space, key="--space"))
        self.monitor = Monitor(given.monitor, given.mode)
        check_mode("--mode", self.monitor)
        usual = Path("sweeps") / Path(given.config[-1]).stem
        self.folder = expanded(given.folder or usual, key="--folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.study = self._open()

    def _open(self) -> Study:
        """Open the study, or make it.

        Raises:
            ConfigurationError: If it is of another sweep.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=f"sqlite:///{self.folder / 'study.db'}",
            study_name="sweep",
            direction="minimize" if self.monitor.mode == "min" else "maximize",
            load_if_exists=True,
        )
        files = self.given.config
        about = {
            "config": files[0] if len(files) == 1 else files,
            "space": self.space,
            "monitor": self.monitor.name,
            "mode": self.monitor.mode,
            "seed": self.given.seed,
            "options": self.rest,
        }
        before = study.user_attrs
        other = [key for key in about if key in before and before[key] != about[key]]
        if other:
            key = other[0]
            raise ConfigurationError(
                f"--folder {self.folder}: its sweep has another {key}, {before[key]!r} and not "
                f"{about[key]!r}: name another folder for a new sweep"
            )
        for key, value in about.items():
            study.set_user_attr(key, value)
        return study

    def run(self) -> int:
        """Run the trials that are missing; return the exit code."""
        from optuna.trial import TrialState

        waiting = self.study.get_trials(states=(TrialState.RUNNING,))
        for trial in waiting:  # at most one: the last, which was stopped
            if trial.params.keys() != self.space.keys():
                self.study.tell(trial.number, state=TrialState.FAIL)
            elif code := self._fit(trial):
                return code
        while len(self.study.trials) < self.given.trials:
            if code := self._fit(self._suggest()):
                return code
        return self._tell_best()

    def _suggest(self) -> Trial:
        """Return a new trial.

        Each has a seed of its own, so that a sweep that was stopped goes on with the values that it
        would have had.
        """
        from optuna.samplers import TPESampler

        self.study.sampler = TPESampler(seed=self.given.seed + len(self.study.trials))
        trial = self.study.ask()
        for key, values in self.space.items():
            _draw(trial, key, values)
        return trial

    def _fit(self, trial: Trial | FrozenTrial) -> int:
        """Train with the values of a trial and note the result; return a code to end with, or 0."""
        from optuna.trial import TrialState

        name = f"trial_{trial.number:03d}"
        said = " ".join(f"{key}={value}" for key, value in trial.params.items())
        print(f"{name}: {said}", flush=True)
        code = _run([*self._command(name), *_options(trial.params)])
        if code in _STOPPED:
            print("stopped; the same command goes on", file=sys.stderr)
            return code if code > 0 else 128 - code
        if code:
            self.study.tell(trial.number, state=TrialState.FAIL)
            print(f"{name}: fit has failed with exit code {code}", file=sys.stderr)
            return 0 if self.study.get_trials(states=(TrialState.COMPLETE,)) else 1
        try:
            value = last_value(numbered_folders(self.folder / name, "version")[-1], self.monitor)
        except (CheckpointError, ConfigurationError):  # it would be so in every trial
            self.study.tell(trial.number, state=TrialState.FAIL)
            raise
        if not math.isfinite(value):  # no reason to end the sweep: other values may do better
            self.study.tell(trial.number, state=TrialState.FAIL)
            print(f"{name}: has failed, {self.monitor.name} is {value}", file=sys.stderr)
            return 0
        self.study.tell(trial.number, value)
        print(f"{name}: {self.monitor.name} {value:.4f}", flush=True)
        return 0

    def _command(self, name: str) -> list[str]:
        """Return the command of a trial; it goes on from the checkpoint of one that was stopped."""
        trained = self.folder / name
        resumed = (
            ["--ckpt_path", "last"] if any(trained.glob("version_*/checkpoints/*.ckpt")) else []
        )
        if not resumed:
            shutil.rmtree(trained, ignore_errors=True)
        place = ["--trainer.default_root_dir", str(self.folder), "--trainer.name", name]
        program = [sys.executable, "-m", "mlecs_lightning", "fit"]
        program += [word for file in self.given.config for word in ("--config", file)]
        return [*program, *self.rest, *place, *resumed]

    def _tell_best(self) -> int:
        from optuna.trial import TrialState

        done = self.study.get_trials(states=(TrialState.COMPLETE,))
        if not done:
            print("error: no trial has succeeded", file=sys.stderr)
            return 1
        best = self.study.best_trial
        print(f"best of {len(done)}: trial_{best.number:03d}, {self.monitor.name} {best.value:.4f}")
        print(f"  {' '.join(_options(best.params))}")
        print(f"compare them: mlecs report {self.folder}/trial_*")
        return 0


def _draw(trial: Trial, key: str, values: Any) -> None:  # noqa: ANN401 - what a YAML file says
    """Let Optuna choose a value of a key."""
    if isinstance(values, list):
        # Lists and mappings are chosen by their text: Optuna stores plain values alone.
        trial.suggest_categorical(key, [_plain(value) for value in values])
        return
    low, high, log = values["low"], values["high"], bool(values.get("log"))
    if isinstance(low, int) and isinstance(high, int) and isinstance(values.get("step", 1), int):
        trial.suggest_int(key, low, high, step=values.get("step", 1), log=log)
    else:
        trial.suggest_float(key, low, high, step=values.get("step"), log=log)


def _plain(value: Any) -> Any:  # noqa: ANN401 - what a YAML file says
    return json.dumps(value) if isinstance(value, list | dict) else value


def _options(params: Mapping[str, Any]) -> list[str]:
    """Return the options of `fit` that set the values of a trial."""
    words = []
    for key, value in params.items():
        text = value if isinstance(value, str) else json.dumps(value)
        words += [f"--{key}", text]
    return words


def _run(command: list[str]) -> int:
    """Run a command, passing on SIGTERM to it; return its exit code."""
    with subprocess.Popen(command) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            while True:
                try:
                    return process.wait()
                except KeyboardInterrupt:
                    continue  # the terminal sends it to both; `fit` saves before it ends
        finally:
            signal.signal(signal.SIGTERM, before)
