"""The tutorial's way from a folder of real recordings to an exported model, by its own commands."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[3]
SECTION = (
    (ROOT / "docs/tutorial.md")
    .read_text()
    .split("## The same with real recordings")[1]
    .split("\n## ")[0]
)
COMMANDS = [shlex.split(line) for line in re.findall(r"^python (.*)$", SECTION, re.MULTILINE)]
# Most of a minute; test_manifest.py takes the same way with files of its own.
pytestmark = pytest.mark.slow
KINDS = {".csv", ".wav", ".png", ".npy", ".txt", ".mp4"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def transcript(
    home: Path, urfd_root: Path, mlecs: Callable[..., SimpleNamespace]
) -> dict[str, SimpleNamespace]:
    """Run the commands one after another; return what each left."""
    pytest.importorskip("av")
    from scripts.urfall_folder import write_folder

    ran: dict[str, SimpleNamespace] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for script, *args in COMMANDS:
            if script == "scripts/urfall_folder.py":
                assert args[0] == "PATH/TO/urfd"
                write_folder(urfd_root, Path(args[1]))
                continue
            assert script == "cli.py"
            known = [str(ROOT / a) if a.startswith("configs/") else a for a in args]
            # Whoever runs it has a home of their own for what is decoded.
            result = mlecs(*known)
            assert result.code == 0, result.err
            ran[args[0]] = result
    return ran


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_commands_are_all_there_is(transcript: dict[str, SimpleNamespace], home: Path) -> None:
    assert list(transcript) == ["data", "fit", "predict", "export"]
    assert {path.suffix for path in (home / "data" / "home").iterdir()} >= KINDS
    told = " ".join(transcript["data"].out.split())
    assert "suspicious: 2 " in told
    assert "sounds are filled up to 5.12 s" in told
    summary = json.loads((home / "runs/home/version_0/summary.json").read_text())
    assert summary["rounds"] == 2
    assert summary["clients"]["kitchen"]["modalities"] == ["acc", "sound", "note"]
    assert summary["clients"]["hall"]["modalities"] == ["camera", "depth"]
    for scores in (summary["mean"]["all"], summary["server"]):
        # 1.0 beside 0.57, whatever the pocket weights: two seeds of them have no spread.
        assert scores["accuracy"] > summary["constant"]["server"]["accuracy"]


def test_new_files_are_answered(transcript: dict[str, SimpleNamespace], home: Path) -> None:
    said = rows(Path(home / transcript["predict"].out.strip()))
    asked = rows(home / "data/home/new.jsonl")
    for party in ("kitchen", "hall", "server"):
        assert [row["id"] for row in said if row["party"] == party] == [row["id"] for row in asked]
    assert all(row.keys() == {"party", "id", "prediction"} for row in said)
    assert len({row["prediction"] for row in said}) > 1


def test_the_exported_model_says_the_same_in_a_process_that_knows_nothing_else(
    transcript: dict[str, SimpleNamespace], home: Path, tmp_path: Path
) -> None:
    folder = home / transcript["export"].out.strip()
    shutil.copytree(folder, tmp_path / "kitchen-model")
    new = rows(home / "data/home/new.jsonl")
    for line in new:
        for name in line["modalities"].values():
            shutil.copyfile(home / "data/home" / name, tmp_path / name)
    heard = [{m: line["modalities"][m] for m in ("acc", "sound", "note")} for line in new]
    (tmp_path / "asked.json").write_text(json.dumps(heard))
    program = SECTION.split("```python\n")[1].split("```")[0]
    program += """
import json
samples = json.loads(Path("asked.json").read_text())
for sample in samples:
    sample["note"] = Path(sample["note"])
print(json.dumps(model.ask_batch(samples)))
"""
    environment = {**os.environ, "MLECS_CACHE": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    one, answers = done.stdout.splitlines()
    said = {
        row["id"]: row["prediction"]
        for row in rows(home / "runs/home/version_0/predictions.jsonl")
        if row["party"] == "kitchen"
    }
    assert json.loads(answers) == [said[line["id"]] for line in new]
    assert one == said["new-fall-01"]
    assert not (tmp_path / "empty").exists(), "nothing was made or decoded elsewhere"


def test_the_exported_adapter_is_one_of_peft(
    transcript: dict[str, SimpleNamespace], home: Path
) -> None:
    from peft import PeftModel

    folder = home / "kitchen-model"
    base = AutoModelForCausalLM.from_pretrained(folder / "backbone")
    adapted = PeftModel.from_pretrained(base, str(folder))
    assert sum(".lora_B." in n and bool(p.any()) for n, p in adapted.named_parameters()) == 2
