"""The command line in process, and one small run that several files read."""

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

TINY = """
seed_everything: 7
trainer:
  max_rounds: 2
  accelerator: cpu
  devices: 1
  limit_val_batches: 1
  limit_test_batches: 1
  save_top_k: -1
  enable_progress_bar: false
  name: tiny
data:
  class_path: Digits
  init_args: {batch_size: 8, eval_batch_size: 8, alpha: 5.0}
algorithm:
  class_path: MLECS
  init_args: {steps: {warmup: 1, public: 1, private: 1, server: 1}}
server:
  backbone: {model: pocket/slm}
  lora: {r: 2, alpha: 4}
  connector: {width: 16, prompt_length: 4}
  optimizer: {class_path: AdamW, init_args: {lr: 1e-2}}
  max_new_tokens: 2
edge:
  backbone: {model: pocket/slm}
  lora: {r: 2, alpha: 4}
  connector: {width: 16, prompt_length: 4}
  optimizer: {class_path: AdamW, init_args: {lr: 1e-2}}
  max_new_tokens: 2
clients:
  kitchen: {modalities: [pixels, profile]}
  hall: {modalities: [fourier]}
"""


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration whose fit takes a second or two."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def mlecs(cache_dir: Path) -> Callable[..., SimpleNamespace]:
    """The command line, called in process: returns exit code, stdout and stderr.

    The parsers of other subcommands than the one that is called, and of ``fit``, which messages
    name the keys of, are left out: building them takes most of the time.
    """
    from mlecs_lightning.cli import FederatedCLI, main

    every = FederatedCLI.subcommands()

    def call(*args: object) -> SimpleNamespace:
        words = [str(arg) for arg in args]
        named = words[:1] == ["data"] or (words[:1] and words[0] in every)
        kept = {name: every[name] for name in every if not named or name in ("fit", words[0])}
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            patch.setattr(FederatedCLI, "subcommands", staticmethod(lambda: kept))
            try:
                code = main(words)
            except SystemExit as stop:  # after --help and --print_config
                code = stop.code  # type: ignore[assignment]
        return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())

    return call


@pytest.fixture
def before_any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a test fail as soon as a model is about to be built."""
    from mlecs_lightning.clients import FederationModels

    def build(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model is being built")

    monkeypatch.setattr(FederationModels, "__init__", build)


@pytest.fixture
def refused(
    mlecs: Callable[..., SimpleNamespace], tiny_yaml: Path, tmp_path: Path
) -> Callable[..., str]:
    """Run a command that must fail and leave nothing behind; return what it said."""

    def call(*args: object) -> str:
        root = ("--trainer.default_root_dir", tmp_path / "runs")
        ran = mlecs("fit", "--config", tiny_yaml, *root, *args)
        assert (ran.code, ran.out) == (1, "")
        assert not (tmp_path / "runs").exists()
        said: str = ran.err
        title, _, message = said.partition("error: ")
        assert title in ("", "Seed set to 7\n")
        assert "Traceback" not in message
        return message

    return call


@pytest.fixture(scope="session")
def fit(mlecs: Callable[..., SimpleNamespace], tiny_yaml: Path) -> Callable[..., SimpleNamespace]:
    """``mlecs fit`` on the small configuration, which must succeed: returns what it left.

    The folder is that of the newest version under ``root``.
    """
    import json

    import torch
    import yaml

    def call(root: Path, *args: object, config: Path = tiny_yaml) -> SimpleNamespace:
        ran = mlecs("fit", "--config", config, "--trainer.default_root_dir", root, *args)
        assert ran.code == 0, ran.err
        folder = max(
            (root / "tiny").glob("version_*"), key=lambda path: int(path.name.split("_")[1])
        )
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        return SimpleNamespace(
            **vars(ran),
            folder=folder,
            summary={k: v for k, v in summary.items() if k != "seconds"},
            config=yaml.safe_load((folder / "config.yaml").read_text()),
            adapter=lambda party: json.loads(
                (folder / "adapters" / party / "adapter_config.json").read_text()
            ),
            checkpoint=lambda number: torch.load(
                folder / "checkpoints" / f"round={number:04d}.ckpt", weights_only=True
            ),
        )

    return call


@pytest.fixture(scope="session")
def fitted(
    fit: Callable[..., SimpleNamespace], tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """Two rounds of the small configuration as it stands: read it, do not change it."""
    return fit(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="session")
def merged(mlecs: Callable[..., SimpleNamespace]) -> Callable[..., dict[str, Any]]:
    """What ``mlecs fit`` makes of its arguments, without running: the merged configuration."""
    import yaml

    def call(*args: object) -> dict[str, Any]:
        ran = mlecs("fit", *args, "--print_config")
        assert ran.code == 0, ran.err
        config: dict[str, Any] = yaml.safe_load(ran.out)
        return config

    return call


@pytest.fixture(scope="session")
def differences() -> Callable[[object, object], list[str]]:
    """Where two nested states differ, bit by bit; an empty list if nowhere."""
    import torch

    def compare(one: object, other: object, at: str = "") -> list[str]:
        if isinstance(one, dict) and isinstance(other, dict):
            shared = [k for k in one if k in other]
            odd = [f"{at}/{k}" for k in one.keys() ^ other.keys()]
            return odd + [d for k in shared for d in compare(one[k], other[k], f"{at}/{k}")]
        if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            pairs = enumerate(zip(one, other, strict=True))
            return [d for i, (a, b) in pairs for d in compare(a, b, f"{at}/{i}")]
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            same = one.dtype == other.dtype and torch.equal(one, other)
        else:
            same = repr(one) == repr(other)  # so that NaN equals NaN
        return [] if same else [at]

    return compare
