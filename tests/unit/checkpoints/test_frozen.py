"""A run goes on with the frozen models that it was trained with, and with no others."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mlecs_lightning import FedAvg
from mlecs_lightning.checkpoints import CheckpointError
from mlecs_lightning.checkpoints.export import export_run
from mlecs_lightning.checkpoints.frozen import check_ranks
from mlecs_lightning.deploy import load_exported
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.federated.warmup import ServerWarmup
from mlecs_lightning.nn import loading

HERE = {"server.towers.llm.backbone": {"model": "pocket/llm", "weights": "a" * 64, "config": "c"}}


def changed(**values: str) -> dict[str, dict[str, str]]:
    return {part: content | values for part, content in HERE.items()}


# The ranks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "named"),
    [
        ([HERE, HERE, HERE], []),
        ([HERE], []),
        ([HERE, changed(model="/elsewhere/llm")], []),
        ([HERE, changed(weights="b" * 64)], ["weights", "aaaaaaaaaaaaaaaa on rank 0", "on rank 1"]),
        ([HERE, HERE, changed(config="d")], ["config", "on rank 2", "pocket/llm"]),
        ([HERE, changed(config="d"), changed(config="e")], ["on rank 1", "on rank 2"]),
    ],
)
def test_ranks_with_other_models_are_refused(ranks: list[Any], named: list[str]) -> None:
    if not named:
        check_ranks(ranks)
        return
    with pytest.raises(ConfigurationError, match="MLECS_CACHE") as caught:
        check_ranks(ranks)
    assert all(each in str(caught.value) for each in named)


# A checkpoint -----------------------------------------------------------------------------------


def flipped(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    state["transformer.ln_f.bias"][0] += 1
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


def renamed(path: Path) -> None:
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    one, two = sorted(words)[-2:]
    words[one], words[two] = words[two], words[one]
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))


def reconfigured(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"activation_function": "relu"}))


CHANGES: dict[str, Callable[[Path], None]] = {
    "weights": flipped,
    "tokenizer": renamed,
    "config": reconfigured,
}


@pytest.fixture(scope="module")
def trained(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run over a backbone in a directory, with a warm-up and an export of it."""
    root = tmp_path_factory.mktemp("trained")
    model = shutil.copytree(tiny.pocket(), root / "model")
    named = tiny.model(backbone={"model": str(model)})
    parties = tiny.parties({"hall": tiny.clients["hall"]}, server=named, edge=named)
    trainer = tiny.trainer(root / "runs", enable_checkpointing=True, max_rounds=1)
    trainer.config = {"server": {"backbone": {"model": str(model)}}}
    trainer.fit(FedAvg(steps=tiny.steps(warmup=1)), tiny.data(), parties)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    warmup = ServerWarmup({**quiet, "accelerator": "cpu", "default_root_dir": root / "warm"})
    warm = warmup.warmup(FedAvg(steps=tiny.steps(warmup=1)), tiny.data(), parties)
    folder = root / "runs" / "tiny" / "version_0"
    export_run(folder, root / "out", client="hall")
    return SimpleNamespace(
        root=root, model=model, folder=folder, parties=parties, warm=warm, warmup=warmup
    )


@pytest.fixture
def run(trained: SimpleNamespace) -> Iterator[SimpleNamespace]:
    """The run, whose backbone may be changed: every test loads it as a new process does."""
    kept = {file: file.read_bytes() for file in trained.model.iterdir()}
    loading._load.cache_clear()
    yield trained
    for file, content in kept.items():
        file.write_bytes(content)
    loading._load.cache_clear()


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files} | {
        str(path): (0, b"") for path in root.rglob("*") if path.is_dir()
    }


def call(run: SimpleNamespace, tiny: SimpleNamespace, command: str, **values: Any) -> object:
    """Run a command on what the run has left."""
    checkpoint = run.folder / "checkpoints" / "round=0000.ckpt"
    parts = FedAvg(steps=tiny.steps(warmup=1)), tiny.data(), run.parties
    match command:
        case "export":
            return export_run(run.folder, run.root / "new", client="server")
        case "load_exported":
            return load_exported(run.root / "out")
        case "warmup":
            return run.warmup.warmup(*parts, ckpt_path=str(run.warm))
        case "fit from the warm-up":
            trainer = tiny.trainer(run.root / "runs", warmup_ckpt_path=str(run.warm))
            return trainer.fit(*parts)
    settings = {"max_rounds": 2, "enable_checkpointing": True, "logger": True, **values}
    return getattr(tiny.trainer(run.root / "runs", **settings), command)(*parts, str(checkpoint))


@pytest.mark.parametrize(
    ("change", "command"),
    [
        *[(kind, "fit") for kind in CHANGES],
        ("weights", "validate"),
        ("weights", "test"),
        ("weights", "predict"),
        ("tokenizer", "predict"),
        ("weights", "export"),
        ("config", "load_exported"),
        ("weights", "load_exported"),
        ("weights", "warmup"),
        ("weights", "fit from the warm-up"),
    ],
)
def test_another_model_under_the_same_name_is_refused_and_nothing_is_written(
    run: SimpleNamespace, tiny: SimpleNamespace, change: str, command: str
) -> None:
    CHANGES[change](run.model)
    before = snapshot(run.root)
    with pytest.raises((CheckpointError, ConfigurationError)) as caught:
        call(run, tiny, command)
    message = str(caught.value)
    assert f"backbone or encoder {str(run.model)!r}: its {change} has sha256" in message
    assert "copy the same files here" in message
    assert snapshot(run.root) == before


@pytest.mark.parametrize("command", ["validate", "predict", "load_exported"])
def test_the_same_model_saved_again_goes_on(
    run: SimpleNamespace, tiny: SimpleNamespace, command: str
) -> None:
    state = load_file(run.model / "model.safetensors")
    torch.save(state, run.model / "pytorch_model.bin")
    (run.model / "model.safetensors").unlink()
    call(run, tiny, command)
    (run.model / "pytorch_model.bin").unlink()


# What is said -----------------------------------------------------------------------------------


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_whoever_allows_it_goes_on_and_reads_what_differs(
    run: SimpleNamespace, tiny: SimpleNamespace, said: list[str], command: str
) -> None:
    flipped(run.model)
    call(run, tiny, command, allow_other_config=True)
    assert any("its weights has sha256" in line for line in said)


@pytest.mark.parametrize("command", ["validate", "predict", "export"])
def test_a_checkpoint_of_an_earlier_version_is_read_with_one_line(
    run: SimpleNamespace, tiny: SimpleNamespace, said: list[str], command: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run.folder, tmp_path / "runs" / "tiny" / "version_0"))
    path = folder / "checkpoints" / "round=0000.ckpt"
    state = torch.load(path, weights_only=True)
    del state["about"]["frozen"]
    torch.save(state, path)
    flipped(run.model)
    call(SimpleNamespace(**{**vars(run), "folder": folder, "root": tmp_path}), tiny, command)
    assert (
        len({line for line in said if "is of an earlier version and has no digests" in line}) == 1
    )


def test_digests_are_told_in_every_place_and_name_no_folder_of_a_pocket_model(
    mlecs_run: SimpleNamespace, trained: SimpleNamespace
) -> None:
    summary = mlecs_run.summary["frozen"]
    assert summary["server.towers.llm.backbone"]["model"] == "pocket/slm"
    assert {len(v) for part in summary.values() for k, v in part.items() if k != "model"} == {64}
    assert {part.split(".")[0] for part in summary} == {"server", "clients"}
    last = torch.load(mlecs_run.folder / "checkpoints" / "round=0001.ckpt", weights_only=True)
    assert last["about"]["frozen"] == summary
    text = (mlecs_run.folder / "config.yaml").read_text()
    assert yaml.safe_load(text) == {"seed_everything": 0}
    [line] = [each for each in text.splitlines() if each.startswith("# pocket/slm: ")]
    assert summary["server.towers.llm.backbone"]["weights"] in line
    config = json.loads((trained.root / "out" / "mlecs_config.json").read_text())
    assert config["frozen"].keys() == {"backbone"}
    assert config["frozen"]["backbone"]["model"] == str(trained.model)
