"""Every block of code in the documentation site does what it says.

Blocks of ``sh`` and ``python`` run one after another in an empty folder, page by page; a block with
a title is written to that file first. Blocks of ``yaml`` are merged into a configuration that is
read and built. Blocks of ``console`` have a test of their own (test_transcript.py), ``text`` and
``json`` show something.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from mlecs_lightning.__main__ import main
from tests.integration.parsed import Parsed

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = {"text", "json", "console"}
# Written for other tools, or for the benchmarks, which test_benchmarks.py runs.
OTHER_PAGES = {"results.md", "design.md", "method.md", "network.md"}
STEPS = ["--algorithm.steps", "{warmup: 2, public: 2, private: 2, server: 2}"]
SHORT = [
    *("--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1"),
    *("--trainer.enable_progress_bar", "false", *STEPS),
]
SHORTENED = {"fit", "validate", "test", "predict", "warmup", "data"}


class Block(NamedTuple):
    """A block: its language, its title and its text."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = []
    for head, text in FENCE.findall(page.read_text()):
        title = re.search(r'title="([^"]+)"', head)
        found.append(Block(head.split(" ")[0], title[1] if title else "", text))
    return found


PAGES = {
    page.relative_to(DOCS).as_posix(): blocks(page)
    for page in sorted(DOCS.rglob("*.md"))
    if page.name not in OTHER_PAGES
}
PAGES["README.md"] = blocks(ROOT / "README.md")
YAML = [
    pytest.param(block, id=f"{name}-{n}")
    for name, own in PAGES.items()
    for n, block in enumerate(each for each in own if each.language == "yaml")
    if not block.title
]


def commands(text: str) -> list[list[str]]:
    joined = text.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("name", PAGES)
def test_every_block_has_a_language_that_is_tested(name: str) -> None:
    languages = {block.language for block in PAGES[name]}
    assert languages <= {"sh", "python", "yaml", *SHOWN}
    for block in PAGES[name]:
        if block.language == "sh":
            assert {words[0] for words in commands(block.text)} <= {"mlecs", "python", "pip"}


@pytest.mark.slow
@pytest.mark.parametrize("block", YAML)
def test_a_piece_of_yaml_fits_a_configuration(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    part = yaml.safe_load(block.text)
    whole = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    if "clients" in part:
        del whole["clients"]  # the piece says who takes part
    base, piece = tmp_path / "base.yaml", tmp_path / "piece.yaml"
    base.write_text(yaml.safe_dump(whole))
    piece.write_text(block.text)
    configs = ["--config", str(base), "--config", str(piece)]
    if "MLFlow" in block.text:
        pytest.importorskip("mlflow")
    if part.get("algorithm", {}).get("class_path"):
        kept = {k: v for k, v in whole.items() if k != "algorithm"}
        base.write_text(yaml.safe_dump(kept))
    Parsed(["fit", *configs])


def is_whole(block: Block) -> bool:
    return block.title.endswith(".yaml") and "data" in yaml.safe_load(block.text)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, own in PAGES.items() if any(map(is_whole, own))])
def test_a_file_of_a_page_is_a_whole_configuration(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in PAGES[name]:
        if block.title:
            (tmp_path / block.title).write_text(block.text)
        if is_whole(block):
            Parsed(["fit", "--config", block.title])


RUNNABLE = [n for n, own in PAGES.items() if any(b.language in ("sh", "python") for b in own)]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNABLE)
def test_the_commands_of_a_page_run_one_after_another(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for block in PAGES[name]:
        if block.title:
            (tmp_path / block.title).write_text(block.text)
        elif block.language == "python" and "fall-01" not in block.text:  # test_transcript.py
            run([sys.executable, "-c", block.text], tmp_path, environment)
        elif block.language == "sh":
            for words in commands(block.text):
                if words[0] != "pip":  # test_wheel.py installs
                    run(real(words), tmp_path, environment)


def real(words: list[str]) -> list[str]:
    """Return the command to run: of this Python, and short."""
    if words[0] == "python":
        return [sys.executable, *words[1:]]
    short = SHORT if words[1] in SHORTENED else []
    return [sys.executable, "-m", "mlecs_lightning", *words[1:], *short]


def run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, f"{shlex.join(command)}\n{ran.stdout}\n{ran.stderr}"


@pytest.mark.slow
def test_the_walk_over_a_network_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # tests/integration/network runs these commands to their end.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "federation.yaml").write_text((ROOT / "configs" / "manifest.yaml").read_text())
    walk = blocks(DOCS / "network.md")
    done = set()
    for block in walk:
        if block.title:
            (tmp_path / block.title).write_text(block.text)
            join = ["join", "--config", "federation.yaml", "--config", block.title]
            assert shown(join, capsys)["allow"] == yaml.safe_load(block.text)["allow"]
        for words in commands(block.text) if block.language == "sh" else []:
            if words[:2] == ["mlecs", "keys"]:
                assert main(words[1:]) == 0
            elif words[0] == "mlecs":
                shown(words[1:], capsys)
            done.add(words[1])
    assert {"keys", "serve", "join", "install"} == done
    assert {"ca.pem", "kitchen.pub"} <= {path.name for path in (tmp_path / "keys").iterdir()}


def shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the configuration that a command would run with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*words, "--print_config"])
    assert ended.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)  # type: ignore[no-any-return]
