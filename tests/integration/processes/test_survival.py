"""Runs that are killed or stopped, and go on."""

import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch

from tests.integration.processes import launch
from tests.integration.processes.launch import ended

ROUNDS = 4
Start = Callable[..., ForkServerProcess]


@pytest.fixture(scope="module")
def start(tiny_yaml: Path, cache_dir: Path) -> Start:
    """Begin a fit of four rounds in ``root``, or go on with the one that is there."""

    def begin(root: Path, *more: str) -> ForkServerProcess:
        args = ["fit", "--config", str(tiny_yaml), "--trainer.max_rounds", str(ROUNDS)]
        args += ["--trainer.default_root_dir", str(root), *more]
        if saved(root):
            args += ["--ckpt_path", "last"]
        return launch.start(*args)

    return begin


def saved(root: Path) -> list[Path]:
    return sorted(root.glob("tiny/version_*/checkpoints/*.ckpt"))


def digest(root: Path) -> str:
    """Hash everything that the last round left: weights, optimisers, ledger, faults, metrics."""
    (path,) = root.glob(f"tiny/version_*/checkpoints/round={ROUNDS - 1:04d}.ckpt")
    state = torch.load(path, weights_only=True)
    state["clients"] = {
        name: torch.load(path.parent / "clients" / kept, weights_only=True)
        if isinstance(kept, str)
        else kept
        for name, kept in state["clients"].items()
    }
    result = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, dict):
            for key in sorted(value, key=str):
                result.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        elif isinstance(value, torch.Tensor):
            result.update(value.numpy().tobytes())
        else:
            result.update(repr(value).encode())

    assert {"server", "clients", "ledger", "faults", "history", "warmup"} <= state.keys()
    for key in sorted(state.keys() - {"seconds", "config"}):
        add(state[key])
    return result.hexdigest()


@pytest.fixture(scope="module")
def unbroken(start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """The digest of a run that was never stopped, and the seconds it took."""
    warm = launch.CONTEXT.Process(target=int)
    warm.start()
    assert ended(warm) == 0  # the fork server has imported everything after this
    root = tmp_path_factory.mktemp("unbroken")
    began = time.perf_counter()
    assert ended(start(root)) == 0
    seconds = time.perf_counter() - began
    return digest(root), seconds


def instants(number: int, seconds: float) -> Iterator[float]:
    """Yield times spread evenly over a run, each at random within its share of it."""
    rng = random.Random(number)
    for k in range(number):
        yield (k + rng.random()) / number * seconds


def kill(process: ForkServerProcess) -> bool:
    """Return whether there was something left to kill."""
    process.kill()
    return ended(process) == -signal.SIGKILL


def check_killed(start: Start, root: Path, expected: str) -> None:
    """Every checkpoint that a killed run left can be read, and it ends as if never stopped."""
    for path in saved(root):
        assert torch.load(path, weights_only=True)["format_version"] == 1
    assert ended(start(root)) == 0
    assert digest(root) == expected


def kill_at(start: Start, root: Path, moment: float) -> None:
    process = start(root)
    process.join(moment)
    if not kill(process):  # this run was faster than the one that was timed
        shutil.rmtree(root)
        kill_at(start, root, 0.8 * moment)


@pytest.mark.parametrize("number", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_ends_in_the_same_bits(
    start: Start, unbroken: tuple[str, float], tmp_path: Path, number: int
) -> None:
    expected, seconds = unbroken
    for k, moment in enumerate(instants(number, seconds)):
        root = tmp_path / str(k)
        kill_at(start, root, moment)
        check_killed(start, root, expected)


@pytest.mark.slow
@pytest.mark.parametrize("round", [1, 3])
def test_a_run_killed_while_it_writes_a_checkpoint_loses_that_one_alone(
    start: Start, unbroken: tuple[str, float], tmp_path: Path, round: int
) -> None:
    expected, _ = unbroken
    process = start(tmp_path)
    folder = tmp_path / "tiny" / "version_0" / "checkpoints"
    staging = f".round={round:04d}.ckpt-*.tmp"
    deadline = time.monotonic() + 60
    while not list(folder.glob(staging)) and process.is_alive() and time.monotonic() < deadline:
        pass  # a sleep would miss the few milliseconds
    assert kill(process)
    check_killed(start, tmp_path, expected)
    assert list(tmp_path.rglob("*.tmp")) == []


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_gets_there(
    start: Start, unbroken: tuple[str, float], tmp_path: Path
) -> None:
    expected, seconds = unbroken
    for _ in range(3):
        kill_at(start, tmp_path / "run", 0.4 * seconds)
    check_killed(start, tmp_path / "run", expected)


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_a_cohort_ends_in_the_same_bits(
    start: Start, tmp_path: Path
) -> None:
    """Study and kitchen train together, and so do hall and cellar."""
    rooms = dict.fromkeys(("study", "kitchen"), "[pixels, profile]")
    rooms |= dict.fromkeys(("hall", "cellar"), "[fourier]")
    clients = ", ".join(f"{name}: {{modalities: {own}}}" for name, own in rooms.items())
    options = ["--clients", f"{{{clients}}}", "--trainer.cohort", "2"]
    whole = tmp_path / "whole"
    began = time.perf_counter()
    assert ended(start(whole, *options)) == 0
    seconds, expected = time.perf_counter() - began, digest(whole)
    roots = [tmp_path / str(k) for k in range(5)]
    process = start(
        roots[0], *options, "--trainer.callbacks", "[tests.integration.processes.pause.Pause]"
    )
    assert process.pid is not None
    while not paused(process.pid):  # kitchen is served, and its cohort has trained
        assert process.is_alive()
        time.sleep(0.01)
    assert kill(process)
    for root, moment in zip(roots[1:], instants(4, seconds), strict=True):
        process = start(root, *options)
        process.join(moment)
        kill(process)
    for root in roots:
        assert ended(start(root, *options)) == 0
        assert digest(root) == expected


# Signals ------------------------------------------------------------------------------------------


def paused(pid: int) -> bool:
    """Return whether a process of this machine is stopped (Linux)."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state == "T"


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
    ids=["TERM", "INT"],
)
def test_a_signal_saves_the_clients_served_so_far(
    start: Start, unbroken: tuple[str, float], tmp_path: Path, signum: int, code: int
) -> None:
    expected, _ = unbroken
    store = ("--trainer.store", "disk")
    process = start(
        tmp_path, *store, "--trainer.callbacks", "[tests.integration.processes.pause.Pause]"
    )
    assert process.pid is not None
    while not paused(process.pid):  # the first of two clients has been served in round 1
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signum)
    os.kill(process.pid, signal.SIGCONT)
    assert ended(process) == code
    partial = tmp_path / "tiny/version_0/checkpoints/round=0001-partial.ckpt"
    assert "kitchen" in torch.load(partial, weights_only=True)["partial"]
    assert ended(start(tmp_path, *store)) == 0
    assert digest(tmp_path) == expected  # whatever the store
    assert not partial.exists()


def test_a_second_interrupt_ends_the_process_at_once(
    start: Start, unbroken: tuple[str, float], tmp_path: Path
) -> None:
    process = start(tmp_path, "--algorithm.steps.private", "100000")
    while not saved(tmp_path):  # after the warm-up; the first round would take an hour
        assert process.is_alive()
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)  # so that both arrive before a batch ends
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) == 130
