"""``mlecs completion SHELL``: a script with which a shell completes commands, keys and names.

The script holds every word itself, so that completing takes no time: this package takes seconds to
import. It is made from the table of commands and from the help of each.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Sequence

from mlecs_lightning.commands.table import COMMANDS
from mlecs_lightning.shipped import shipped_configs

__all__ = ["completion"]

_SHELLS = ("bash", "zsh", "fish")
_OWN = "completion"

_BASH = """\
_mlecs() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} words=
  if [ "$COMP_CWORD" -eq 1 ]; then
    words={commands}
  elif [ "$previous" = --config ]; then
    words={configs}
  else
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _mlecs mlecs
"""
# zsh runs the functions of bash.
_ZSH = """\
#compdef mlecs
autoload -Uz compinit bashcompinit
compinit -u
bashcompinit
"""


def completion(words: Sequence[str]) -> int:
    """Run ``completion SHELL``: print its script.

    Args:
        words: The words after ``completion``.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(
        prog="mlecs completion",
        allow_abbrev=False,
        description="Print a script with which a shell completes commands, keys and the names of "
        "configurations. Making it takes some seconds, so keep it in a file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="bash:  mlecs completion bash > ~/.local/share/bash-completion/completions/mlecs\n"
        "zsh:   mlecs completion zsh > ~/.zfunc/_mlecs   (a folder of fpath)\n"
        "fish:  mlecs completion fish > ~/.config/fish/completions/mlecs.fish",
    )
    parser.add_argument("shell", choices=_SHELLS, help="the shell")
    shell = parser.parse_args(words).shell
    follow = {command.name: _words_of(command.name) for command in COMMANDS}
    print(_fish(follow) if shell == "fish" else (_ZSH if shell == "zsh" else "") + _bash(follow))
    return 0


def _words_of(command: str) -> list[str]:
    """Return the words that may follow a command: its options and fixed names."""
    if command == _OWN:
        return list(_SHELLS)
    if command == "configs":
        return ["--copy", "--help", *shipped_configs()]
    chosen = next(each for each in COMMANDS if each.name == command)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        chosen.run([*command.split(), "--help"])
    fixed = re.findall(r"^  \{([a-z,]+)\}", said.getvalue(), re.MULTILINE)
    names = ",".join(fixed).split(",") if fixed else []
    options = re.findall(r"(?<![\w.])--[a-z][\w.]*\w", said.getvalue())
    return list(dict.fromkeys([*names, *options, "--help"]))


def _bash(follow: dict[str, list[str]]) -> str:
    """Return the script of bash."""
    cases = []
    for name, known in follow.items():
        first, _, second = name.partition(" ")
        words = shlex.quote(" ".join(known))
        if second:
            inner = f'if [ "$COMP_CWORD" -eq 2 ]; then words={second}; else words={words}; fi'
            cases.append(f"      {first}) {inner} ;;")
        else:
            cases.append(f"      {first}) words={words} ;;")
    firsts = " ".join(dict.fromkeys(name.split()[0] for name in follow))
    return _BASH.format(
        commands=shlex.quote(firsts + " --help --version"),
        configs=shlex.quote(" ".join(shipped_configs())),
        cases="\n".join(cases),
    )


def _fish(follow: dict[str, list[str]]) -> str:
    """Return the script of fish."""
    about = {command.name: command.about for command in COMMANDS}
    lines = []
    for name, known in follow.items():
        first, _, second = name.partition(" ")
        told = shlex.quote(about[name])
        lines.append(f"complete -c mlecs -f -n __fish_use_subcommand -a {first} -d {told}")
        seen = f"'__fish_seen_subcommand_from {first}'"
        plain = [word for word in (second, *known) if word and not word.startswith("-")]
        if plain:
            lines.append(f"complete -c mlecs -n {seen} -a {shlex.quote(' '.join(plain))}")
        lines += [
            f"complete -c mlecs -n {seen} -l {word[2:]}"
            for word in known
            if word.startswith("--") and word != "--config"
        ]
        if "--config" in known:
            names = shlex.quote(" ".join(shipped_configs()))
            lines.append(f"complete -c mlecs -n {seen} -l config -r -a {names}")
    return "\n".join(lines)
