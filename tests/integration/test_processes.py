"""The same federation on one process and on two."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

# Three clients on two ranks, and nothing random that would depend on which rank draws it. SGD: Adam
# takes steps of one size however small a gradient is, so that a sum in another order, different in
# its last bit, would show.
ODD = """
edge:
  lora: {dropout: 0.0}
  connector: {dropout: 0.0}
  optimizer: {class_path: SGD, init_args: {lr: 0.02}}
server:
  lora: {dropout: 0.0}
  connector: {dropout: 0.0}
  optimizer: {class_path: SGD, init_args: {lr: 0.02, momentum: 0.9}}
clients:
  study: {modalities: [pixels, profile, fourier]}
"""
# Of 7 samples of a batch one rank gets 4, the other 3.
SETTINGS = ("--data.batch_size", "7", "--trainer.limit_test_batches", "3")

Launch = Callable[..., Path]


@pytest.fixture(scope="module")
def launch(
    repo_root: Path, tiny_yaml: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Launch:
    """Run a subcommand in processes of its own; returns the folder of checkpoints."""
    odd = tmp_path_factory.mktemp("odd") / "odd.yaml"
    odd.write_text(ODD)

    def run(root: Path, *more: str, launcher: tuple[str, ...] = ()) -> Path:
        command = [sys.executable, *launcher, str(repo_root / "cli.py"), "fit"]
        command += ["--config", str(tiny_yaml), "--config", str(odd), *SETTINGS]
        command += ["--trainer.default_root_dir", str(root), *more]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count("communication") == 1  # one process speaks for all
        return root / "tiny" / "version_0" / "checkpoints"

    return run


def differences(one: Any, other: Any, at: str = "") -> list[str]:  # noqa: ANN401 - nested states
    """Return where two states differ by more than 1e-6 (of values above 1, relative)."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), at
        return [d for k in one for d in differences(one[k], other[k], f"{at}/{k}")]
    if isinstance(one, list):
        assert len(one) == len(other), at
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{at}/{i}")]
    if isinstance(one, Tensor | float):
        a, b = torch.as_tensor(one, dtype=torch.float64), torch.as_tensor(other)
        difference = ((a - b).abs() / a.abs().clamp_min(1)).max()
        return [f"{at}: {float(difference)}"] if not difference <= 1e-6 else []
    return [f"{at}: {one!r}, {other!r}"] if one != other else []


COMPARED = ("names", "server", "clients", "ledger", "faults", "history", "warmup")


def check_equal(one: Path, other: Path) -> None:
    states = [
        torch.load(folder / "round=0001.ckpt", weights_only=True) for folder in (one, other)
    ]
    assert [d for key in COMPARED for d in differences(states[0][key], states[1][key], key)] == []


@pytest.fixture(scope="module")
def alone(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("alone")
    return SimpleNamespace(root=root, checkpoints=launch(root))


def test_two_processes_do_what_one_does_and_one_goes_on_from_there(
    launch: Launch, alone: SimpleNamespace, tmp_path: Path
) -> None:
    folder = launch(tmp_path, "--trainer.devices", "2", "--trainer.strategy", "ddp")
    check_equal(alone.checkpoints, folder)
    said = [(p / "summary.json").read_text() for p in (alone.checkpoints.parent, folder.parent)]
    assert len(said[0].splitlines()) == len(said[1].splitlines())
    adapters = sorted(p.name for p in (folder.parent / "adapters").iterdir())
    assert adapters == ["hall", "kitchen", "server", "study"]
    (folder / "round=0001.ckpt").unlink()
    check_equal(alone.checkpoints, launch(tmp_path, "--ckpt_path", "last"))


def test_torchrun_launches_it_too_and_two_go_on_where_one_stopped(
    launch: Launch, alone: SimpleNamespace, tmp_path: Path
) -> None:
    launch(tmp_path, "--trainer.max_rounds", "1")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    folder = launch(
        tmp_path,
        *("--trainer.devices", "2", "--trainer.store", "disk", "--ckpt_path", "last"),
        launcher=torchrun,
    )
    state = torch.load(folder / "round=0001.ckpt", weights_only=True)
    state["clients"] = {
        name: torch.load(folder / "clients" / file, weights_only=True)
        for name, file in state["clients"].items()
    }
    torch.save(state, folder / "round=0001.ckpt")
    check_equal(alone.checkpoints, folder)
