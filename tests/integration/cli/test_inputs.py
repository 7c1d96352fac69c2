"""What a user writes is read as it stands: names, keys, paths and texts of any locale."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from mlecs_lightning.checkpoints.checkpoint import find_checkpoint
from mlecs_lightning.data import Manifest, URFall
from mlecs_lightning.data.decoding.preparation import Preparation
from mlecs_lightning.data.decoding.shapes import Declared
from mlecs_lightning.federated import FederatedTrainer
from mlecs_lightning.report import command
from mlecs_lightning.settings import BackboneSettings, cache_dir
from tests.integration.cli.messages import missing

Merged = Callable[..., dict[str, Any]]
Mlecs = Callable[..., SimpleNamespace]
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)

# What is typed behind a configuration that runs, and what must be in the message.
COMMANDS: dict[str, tuple[str, list[str]]] = {
    # Prefixes of keys -----------------------------------------------------------------------------
    "prefix": ("--trainer.max_round 3", ["--trainer.max_round", "mean --trainer.max_rounds?"]),
    "prefix of a section": ("--train.max_rounds 3", ["did you mean --trainer.max_rounds?"]),
    "prefix at the top": ("--seed 3", ["did you mean --seed_everything?"]),
    "prefix of config": ("--conf x.yaml", ["did you mean --config?"]),
    "prefix of an optimizer": ("--edge.optim AdamW", ["did you mean --edge.optimizer?"]),
    "prefix of an argument": ("--data.batch_siz 4", ["'batch_siz'", "'batch_size'"]),
    "another key": ("--edge.lora.rnak 4", ["did you mean --edge.lora.r", "'r', 'alpha'"]),
    # Arguments without their class ----------------------------------------------------------------
    "scheduler without a class": (
        "--edge.lr_scheduler.init_args.T_max 3",
        ["edge.lr_scheduler has arguments and no class", "--edge.lr_scheduler.class_path"],
    ),
    # Names ----------------------------------------------------------------------------------------
    "300 letters": (f"--clients.{'x' * 300} '{{modalities: [pixels]}}'", ["300 bytes", "200"]),
    "two cases": ("--clients.Hall '{modalities: [pixels]}'", ["'hall' and 'Hall' are one folder"]),
    "taken": ("--clients.all '{modalities: [pixels]}'", ["'all' is taken", "rename the client"]),
    "trailing blank": (
        "--clients '{\"a \": {modalities: [pixels]}}'",
        ["the name 'a ' is no name"],
    ),
    # Paths ----------------------------------------------------------------------------------------
    "unset in root": ("--trainer.default_root_dir '$NOWHERE/x'", ["default_root_dir: the path"]),
    "unset in warm-up": ("--trainer.warmup_ckpt_path '$NOWHERE/x'", ["warmup_ckpt_path: the path"]),
    "unset in backbone": (
        "--edge.backbone.model '${NOWHERE}/x'",
        ["edge.backbone: model: the path"],
    ),
    "unset of a client": (
        "--clients.hall.backbone.model '$NOWHERE'",
        ["hall.backbone: model: the"],
    ),
    "unset in data": (
        "--data URFall --data.root '$NOWHERE/urfd'",
        ["data.init_args.root: the path '$NOWHERE/urfd' names ['NOWHERE']", "export NOWHERE="],
    ),
    "unset in checkpoint": ("--ckpt_path '$NOWHERE/x.ckpt'", ["ckpt_path: the path"]),
    "unset in config": ("--config '$NOWHERE/x.yaml'", ["the path '$NOWHERE/x.yaml' names"]),
    # YAML on the command line ---------------------------------------------------------------------
    "twice": ("--clients.hall '{lora: {r: 1, r: 2}}'", ["written twice", "hall.lora.r"]),
    "itself": ("--clients.hall '{lora: &a [*a]}'", ["*a is a part of itself"]),
    "deep": (f"--clients.hall '{'[' * 60}'", ["levels deep"]),
}

# The bytes of a second file, and what must be in the message.
FILES: dict[str, tuple[bytes, list[str]]] = {
    "aliases of aliases": (BOMB.encode(), ["more than 100,000 values", "remove aliases"]),
    "depth": (b"edge: " + b"[" * 100_000, ["line 1: values lie more than 40 levels deep"]),
    "a part of itself": (b"edge: &a {lora: *a}", ["*a is a part of itself"]),
    "key twice": (b"edge: {lora: {r: 1, r: 2}}", ["written twice", "['edge.lora.r']"]),
    "utf-16": ("edge: {}".encode("utf-16"), ["is no text in UTF-8 but in UTF-16", "iconv"]),
    "latin-1": ("edge: {}\n# für".encode("latin-1"), ["line 2, byte 4 is 0xfc", "iconv"]),
    "cut": ("# fü".encode()[:-1], ["line 1, byte 4 is 0xc3"]),
    "no for a word": (b"trainer: {name: no}", ['"trainer.name"', "quote a word"]),
}


@pytest.mark.usefixtures("before_any_model")
@pytest.mark.parametrize(("args", "words"), COMMANDS.values(), ids=COMMANDS.keys())
def test_a_wrong_command_is_refused(
    refused: Callable[..., str], args: str, words: list[str]
) -> None:
    message = refused(*shlex.split(args))
    assert missing(words, message) == [], message


@pytest.mark.usefixtures("before_any_model")
@pytest.mark.parametrize(("content", "words"), FILES.values(), ids=FILES.keys())
def test_a_wrong_file_is_refused(
    refused: Callable[..., str], tmp_path: Path, content: bytes, words: list[str]
) -> None:
    second = tmp_path / "second.yaml"
    second.write_bytes(content)
    message = refused("--config", second)
    assert missing(words, message) == [], message


@pytest.mark.parametrize("text", [BOMB, "[" * 5000, "a: 1\na: 2"], ids=["bomb", "deep", "twice"])
def test_a_report_refuses_what_a_run_would_not_have_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(text)
    assert command.report([str(tmp_path)]) == 1
    assert "config.yaml cannot be read" in capsys.readouterr().err


# Optimisers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("party", ["edge", "server"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("optimizer.init_args.lr", "0.5"),
        ("optimizer.lr", "0.5"),
        ("optimizer", "{init_args: {lr: 0.5}}"),
        (None, {"init_args": {"lr": 0.5}}),
    ],
)
def test_arguments_alone_are_those_of_the_default_optimizer(
    merged: Merged, tiny_yaml: Path, tmp_path: Path, party: str, option: str | None, value: object
) -> None:
    values = yaml.safe_load(tiny_yaml.read_text())
    del values[party]["optimizer"]
    if option is None:
        values[party]["optimizer"] = value
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump(values))
    option_too = (f"--{party}.{option}", value) if option else ()
    chosen = merged("--config", path, *option_too)[party]["optimizer"]
    assert (chosen["class_path"], chosen["init_args"]["lr"]) == ("torch.optim.AdamW", 0.5)
    decay = f"--{party}.optimizer.init_args.weight_decay=0"
    if option == "optimizer.lr":  # what is not named is that of the default, not that of torch
        arguments = merged("--config", path, decay)[party]["optimizer"]["init_args"]
        assert (arguments["lr"], arguments["weight_decay"]) == (2e-4, 0.0)


# Names --------------------------------------------------------------------------------------------

NAMES = ["no", "007", "1e3", "null"]


def test_names_survive_a_run_and_its_config(
    fit: Callable[..., SimpleNamespace], merged: Merged, mlecs: Mlecs, tmp_path: Path
) -> None:
    second = tmp_path / "second.yaml"
    second.write_text(f"clients: {{{', '.join(f'{n}: {{modalities: [pixels]}}' for n in NAMES)}}}")
    ran = fit(tmp_path, "--config", second, "--trainer.fast_dev_run", "true")
    assert {*NAMES} < ran.summary["clients"].keys()
    assert all((ran.folder / "adapters" / name).is_dir() for name in NAMES)
    assert list(ran.config["clients"])[2:] == NAMES
    assert list(merged("--config", ran.folder / "config.yaml")["clients"])[2:] == NAMES


def test_names_on_the_command_line_are_words(merged: Merged, tiny_yaml: Path) -> None:
    config = merged(
        *("--config", tiny_yaml, "--data", "Manifest", "--data.file", "x.jsonl"),
        *("--data.modalities", "{no: {kind: vector, shape: [1]}}"),
        *("--data.labels", "{no: [no, off], yes: [yes, 1]}", "--clients.no", "{modalities: [no]}"),
        *("--clients.hall.modalities", "[no]", "--clients.hall.domains=[007]"),
    )
    data = config["data"]["init_args"]
    assert data["modalities"] == {"no": {"kind": "vector", "shape": [1]}}
    assert data["labels"] == {"no": ["no", "off"], "yes": ["yes", "1"]}
    assert config["clients"]["no"] == {"modalities": ["no"]}
    assert config["clients"]["hall"] == {"modalities": ["no"], "domains": ["007"]}


# Paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("home", ["~", "$HOME", "${HOME}"])
def test_a_path_means_the_same_under_every_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str, mlecs: Mlecs, tiny_yaml: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLECS_CACHE", f"{home}/x")
    path, x = tmp_path / "x", f"{home}/x"
    vector = {"v": {"kind": "vector", "shape": [1]}}
    manifest = Manifest(x, vector, root=x, cache_dir=x, allowed_roots=[x])
    urfall = URFall(root=x, cache_dir=x)
    (tmp_path / "x.csv").write_text("7")
    trainer = FederatedTrainer(default_root_dir=x, warmup_ckpt_path=x)
    assert {
        *manifest.files,
        manifest.root,
        manifest._cache._folder.parent,
        *manifest.allowed_roots,
        urfall.root,
        urfall.cache_dir,
        trainer.settings.root,
        trainer.settings.warmup_ckpt_path,
        find_checkpoint(x, run_root=Path()),
        Path(BackboneSettings(model=x).model),
        cache_dir(),
    } == {path}
    assert Preparation(Declared("vector", [1])).read(Path(f"{x}.csv")).item() == 7
    (tmp_path / "x.yaml").write_text("clients: {hall: {lora: {r: 3}}}")
    ran = mlecs("fit", "--config", tiny_yaml, f"--config={x}.yaml", "--print_config")
    assert yaml.safe_load(ran.out)["clients"]["hall"]["lora"] == {"r": 3}


# Locales ------------------------------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A configuration, a manifest and files with letters of many alphabets, in UTF-8."""
    lines = [
        {
            "id": f"größe-{n}",
            "split": ("public", "train", "test")[n // 8],
            "client": "küche" if n >= 8 else None,
            "target": "日本 läuft" if n % 2 else "ёж спит",
            "modalities": {"v": "v.csv", "t": "t.txt"},
        }
        for n in range(24)
    ]
    (tmp_path / "m.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
        encoding="utf-8-sig",
    )
    (tmp_path / "v.csv").write_text("größe\n1\n2\n", encoding="utf-8")
    (tmp_path / "t.txt").write_text("für 日本", encoding="utf-8")
    (tmp_path / "c.yaml").write_text(
        """# für jeden
data:
  class_path: Manifest
  init_args:
    file: m.jsonl
    instruction: was läuft ?
    modalities: {v: {kind: vector, shape: [2]}, t: {kind: text, shape: [32]}}
    labels: {日本: [日本], ёж: [ёж]}
    batch_size: 2
algorithm: {class_path: FedAvg}
clients: {hall: {modalities: [v, t], domains: [küche]}}
""",
        encoding="utf-8",
    )
    return tmp_path


@pytest.mark.slow
def test_files_are_read_in_any_locale(foreign: Path, repo_root: Path) -> None:
    """In one true process: the encoding of a locale is chosen when Python starts."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    program = [sys.executable, repo_root / "cli.py", "data", "check", "--config", "c.yaml"]
    ran = subprocess.run(program, cwd=foreign, env=environment, capture_output=True)
    said = ran.stdout.decode("ascii")  # what the locale does not have is spelt out
    assert ran.returncode == 0, ran.stderr
    assert "\n| hall   |" in said
    assert "\\u65e5\\u672c l\\xe4uft (4)" in said
