"""The commands: overview, versions, and what a mistyped one says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlecs_lightning.__main__ import main
from mlecs_lightning.commands import COMMANDS, overview, versions

HEAVY = ("torch", "lightning", "transformers", "jsonargparse")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_command_on_one_screen(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    for command in COMMANDS:
        assert any(line.split(command.about)[0].strip() == command.name for line in lines[1:])


def test_versions_are_those_of_a_bug_report() -> None:
    told = dict(line.split(maxsplit=1) for line in versions().splitlines())
    assert told["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert {"mlecs_lightning", "torch", "lightning", "transformers", "peft"} <= told.keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fti"], "'fti': did you mean 'fit'?"),
        (["reports"], "'reports': did you mean 'report'?"),
        (["data"], "'data': did you mean 'data check'?"),
        (["data", "chek"], "'data chek': did you mean 'data check'?"),
        (["xyzzy"], "'xyzzy'."),
    ],
)
def test_an_unknown_command_names_the_known_ones(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"there is no command {said}" in error
    assert all(command.name in error for command in COMMANDS)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["configs"], ["fti"]])
def test_what_only_talks_imports_nothing_heavy(words: list[str]) -> None:
    script = (
        "import sys; from mlecs_lightning.__main__ import main; "
        f"main({words!r}); print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stderr.splitlines()[-1] == "[]"


def test_the_readme_and_the_guide_name_every_command(repo_root: Path) -> None:
    guide = (repo_root / "docs" / "guide.md").read_text()
    missing = [c.name for c in COMMANDS if not re.search(rf"(mlecs|cli\.py) {c.name}\b", guide)]
    assert missing == []


def test_the_overview_is_that_of_the_program_it_is_asked_of() -> None:
    assert overview("python cli.py").startswith("usage: python cli.py COMMAND")
