"""Loggers and early stopping from a configuration."""

import csv
import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.fabric.loggers.logger import Logger

from mlecs_lightning.errors import ConfigurationError
from tests.integration.parsed import Parsed

TRACKERS = {
    "mlflow": {
        "class_path": "lightning.pytorch.loggers.MLFlowLogger",
        "init_args": {"experiment_name": "x", "tracking_uri": "sqlite:///mlflow.db"},
    },
    "wandb": {
        "class_path": "lightning.pytorch.loggers.WandbLogger",
        "init_args": {"project": "x", "offline": True},
    },
}


def test_loggers_of_lightning_take_the_rounds_as_steps(
    fit: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    loggers = [
        {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": {"save_dir": str(path)}}
        for name, path in (("CSVLogger", tmp_path / "c"), ("TensorBoardLogger", tmp_path / "t"))
    ]
    ran = fit(tmp_path / "runs", "--trainer.logger", json.dumps(loggers))
    assert not (ran.folder / "metrics.csv").exists(), "in the place of the usual ones"
    folder = tmp_path / "c" / "lightning_logs" / "version_0"
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert float(rows[2]["clients/val/loss"]) > 0
    assert "seed_everything: 7" in (folder / "hparams.yaml").read_text()
    assert list((tmp_path / "t").rglob("events.out.tfevents.*"))


def test_one_logger_need_not_stand_in_a_list(
    fit: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    logger = {
        "class_path": "lightning.fabric.loggers.CSVLogger",
        "init_args": {"root_dir": str(tmp_path / "one")},
    }
    fit(tmp_path, "--trainer.logger", json.dumps(logger), "--trainer.max_rounds", 1)
    assert list((tmp_path / "one").rglob("metrics.csv"))


@pytest.mark.parametrize("name", TRACKERS)
def test_trackers_are_built_from_a_configuration(
    name: str, tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    args = ["fit", "--config", str(tiny_yaml), "--trainer.logger", json.dumps(TRACKERS[name])]
    (logger,) = Parsed(args).trainer.settings.logger  # type: ignore[attr-defined]
    assert isinstance(logger, Logger)


# In a process of its own, with the packages of the extra from where they are: trackers keep what
# they were told in the process.
TRACKED = """
import json, sys
from mlecs_lightning.__main__ import main
sys.exit(main(["fit", "--config", sys.argv[1], *sys.argv[2:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACKERS)
def test_trackers_get_metrics_summary_report_and_adapters(
    name: str, tiny_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = os.environ.get("MLECS_TRACKERS", "")
    monkeypatch.setattr(sys, "path", [*sys.path, place])
    if find_spec(name) is None and not (Path(place) / name).is_dir():
        pytest.skip(f"{name} is not installed: pip install '.[trackers]', or set MLECS_TRACKERS")
    options = ["--trainer.logger", json.dumps(TRACKERS[name]), "--trainer.default_root_dir", "runs"]
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), place]))
    ran = subprocess.run(
        [sys.executable, "-c", TRACKED, str(tiny_yaml), *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "does not take artifacts" not in ran.stderr
    folder = tmp_path / "runs" / "tiny" / "version_0"
    kept = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in [*folder.glob("adapters/**/*"), folder / "summary.json", folder / "report.html"]
        if path.is_file()
    }
    assert len(kept) > 8
    root = next(
        tmp_path.glob("mlruns/*/*/artifacts" if name == "mlflow" else "wandb/offline*/files")
    )
    assert {path: (root / path).read_bytes() for path in kept} == kept
    if name == "mlflow":
        with sqlite3.connect(tmp_path / "mlflow.db") as database:
            rows = database.execute("SELECT key, step, value FROM metrics ORDER BY step").fetchall()
        losses = [(step, value) for key, step, value in rows if key == "clients/val/loss"]
    else:
        (log,) = tmp_path.glob("wandb/offline*/*.wandb")
        losses = [
            (row["trainer/global_step"], row["clients/val/loss"])
            for row in wandb_rows(log)
            if "clients/val/loss" in row
        ]
    assert [step for step, _ in losses][-2:] == [1, 2]
    assert all(value > 0 for _, value in losses)


def wandb_rows(log: Path) -> list[dict[str, Any]]:
    """Return what an offline run of W&B has logged, step by step.

    The file is a log in LevelDB's form with a head of seven bytes: parts with a checksum of four
    bytes, a length of two and a kind of one (whole, first, middle, last), in blocks of 32 kB.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, held, rows = log.read_bytes(), 7, b"", []
    while place < len(data):
        if 32768 - place % 32768 < 7:  # the rest of a block is empty
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<4xHB", data, place)
        held += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record, held = Record.FromString(held), b""
            items = record.history.item
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows


@pytest.mark.slow
def test_early_stopping_is_named_in_the_configuration(
    fit: Callable[..., SimpleNamespace],
    mlecs: Callable[..., SimpleNamespace],
    tiny_yaml: Path,
    tmp_path: Path,
) -> None:
    stop = {
        "class_path": "EarlyStopping",
        "init_args": {"monitor": "server/val/loss", "patience": 1, "min_delta": 100.0},
    }
    args = ("--trainer.callbacks", json.dumps([stop]), "--trainer.max_rounds", 5)
    assert fit(tmp_path, *args).summary["rounds"] == 2
    stop["init_args"]["monitor"] = "server/val/lost"  # type: ignore[index]
    args = ("--trainer.callbacks", json.dumps([stop]), "--trainer.default_root_dir", tmp_path)
    ran = mlecs("fit", "--config", tiny_yaml, *args)
    assert ran.code == 1
    assert "'server/val/lost' is no value of a round; validation gives ['clients/" in ran.err


@pytest.mark.skipif(find_spec("comet_ml") is not None, reason="its package is installed")
@pytest.mark.parametrize("form", ["{}", "[{}]"])
def test_a_logger_without_its_package_says_what_to_install(form: str) -> None:
    comet = '{"class_path": "lightning.pytorch.loggers.CometLogger"}'
    words = ["fit", "--config", "quickstart", "--trainer.logger", form.format(comet)]
    with pytest.raises(ConfigurationError, match=r"CometLogger: .*pip install -U 'comet-ml"):
        Parsed(words)
