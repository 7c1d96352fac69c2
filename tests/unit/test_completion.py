"""The scripts that complete words: run by a real shell."""

import shutil
import subprocess
from pathlib import Path

import pytest

from mlecs_lightning.commands import COMMANDS, completion

KNOWN = {
    "configs": ["--copy", "--help", "quickstart"],
    "data check": ["--config", "--data"],
    "fit": ["--config", "--trainer.max_rounds", "--trainer.monitor", "--help"],
}


def completed(script: str, *words: str) -> list[str]:
    """Return what bash offers for the last word of a command line."""
    line = " ".join(f'"{word}"' for word in words)
    program = f"{script}\nCOMP_WORDS=({line})\nCOMP_CWORD={len(words) - 1}\n_mlecs\n"
    program += 'printf "%s\\n" "${COMPREPLY[@]}"'
    ran = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    return ran.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["f"], ["fit"]),
        (["c"], ["configs"]),
        (["--v"], ["--version"]),
        (["data", ""], ["check"]),
        (["data", "check", "--d"], ["--data"]),
        (["fit", "--trainer.m"], ["--trainer.max_rounds", "--trainer.monitor"]),
        (["fit", "--config", "quickstart_e"], ["quickstart_eclm"]),
        (["configs", "q"], ["quickstart"]),
        (["fit", "nothing"], []),
    ],
)
def test_bash_completes_commands_keys_and_names(words: list[str], offered: list[str]) -> None:
    assert completed(completion._bash(KNOWN), "mlecs", *words) == offered


def test_fish_gets_a_line_for_each_word() -> None:
    lines = completion._fish(KNOWN).splitlines()
    assert "complete -c mlecs -n '__fish_seen_subcommand_from fit' -l trainer.max_rounds" in lines
    assert sum("__fish_use_subcommand -a fit" in line for line in lines) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_script_knows_the_keys_of_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert completion.completion(["bash"]) == 0
    script = capsys.readouterr().out
    for command in COMMANDS:
        first = command.name.split()[0]
        assert first in completed(script, "mlecs", first[:3])
    for command, key in {"fit": "--trainer.rouge", "join": "--client", "keys": "device"}.items():
        assert key in completed(script, "mlecs", command, key)
    assert list(tmp_path.iterdir()) == []
