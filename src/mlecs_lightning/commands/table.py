"""All commands: one table for the overview, the dispatch and the error messages.

Imports nothing heavy, so the overview appears at once.
"""

from __future__ import annotations

import difflib
import importlib
import platform
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import NamedTuple

__all__ = ["COMMANDS", "Command", "overview", "run", "versions"]

_TOLD = ("torch", "lightning", "transformers", "peft", "torchmetrics", "jsonargparse")


class Command(NamedTuple):
    """One command.

    Attributes:
        name: One word, or two.
        about: What it does, in one line.
        target: ``module:function``, which takes the words after the name and returns the exit code;
            without one, `mlecs_lightning.cli.main` takes the whole command line.
    """

    name: str
    about: str
    target: str = ""

    def run(self, words: Sequence[str]) -> int:
        """Run the command; return the exit code."""
        if not self.target:
            return _main(words)
        module, _, name = self.target.partition(":")
        function: Callable[[list[str]], int] = getattr(importlib.import_module(module), name)
        return function(list(words[self.name.count(" ") + 1 :]))


def _main(words: Sequence[str]) -> int:
    from mlecs_lightning.cli import main  # takes seconds

    return main(list(words))


COMMANDS = (
    Command("configs", "List or copy the ready configurations", "mlecs_lightning.shipped:configs"),
    Command("data check", "Check the data of a configuration, and say what looks wrong"),
    Command("fit", "Train a federation, test it, and write a run folder"),
    Command("validate", "Score a checkpoint on the validation splits"),
    Command("test", "Score a checkpoint on the test splits"),
    Command("serve", "Train a federation whose clients are devices on a network"),
    Command("join", "Train one client on this device, for a server on the network"),
    Command(
        "keys",
        "Make the certificate of a server, or the key pair of a device",
        "mlecs_lightning.network.identity.keys:keys",
    ),
    Command("predict", "Write the answers of every party of a checkpoint"),
    Command("warmup", "Train the server alone on public data, with Lightning's Trainer"),
    Command(
        "sweep",
        "Search for good settings with Optuna, one fit after another",
        "mlecs_lightning.cli.sweep:sweep",
    ),
    Command(
        "report",
        "Write a page of tables and charts about runs",
        "mlecs_lightning.report.command:report",
    ),
    Command("export", "Write one trained model as a folder that works without this run"),
    Command("push", "Upload one trained model to the Hugging Face hub"),
    Command(
        "completion",
        "Print a script with which bash, zsh or fish completes all of this",
        "mlecs_lightning.commands.completion:completion",
    ),
)


def overview(program: str = "mlecs") -> str:
    """Return the help that names every command."""
    width = max(len(command.name) for command in COMMANDS)
    return "\n".join(
        [
            f"usage: {program} COMMAND [options]",
            "Train language models on devices together with one in the cloud; private data stay "
            "where they are.",
            "",
            "commands:",
            *(f"  {command.name:<{width}}  {command.about}" for command in COMMANDS),
            "",
            "options:",
            f"  {'--help':<{width}}  Show this help; after a command, the help of that command",
            f"  {'--version':<{width}}  Show the versions that a bug report needs",
            f"A first run:  {program} fit --config quickstart",
        ]
    )


def versions() -> str:
    """Return the versions of this package, Python, the system and the main dependencies."""
    own = metadata.version("mlecs_lightning")
    lines = [
        f"mlecs_lightning {own}",
        f"python {platform.python_version()} ({platform.platform()})",
    ]
    for name in _TOLD:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} is not installed")
    return "\n".join(lines)


def run(words: Sequence[str]) -> int:
    """Run the command that a command line begins with.

    Args:
        words: The command line, without the program.

    Returns:
        The exit code: that of the command, or 2 if there is no such command.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(versions())
        return 0
    found = [c for c in COMMANDS if list(words[: c.name.count(" ") + 1]) == c.name.split()]
    if not found and not words[0].startswith("-"):
        print(f"error: {_unknown(words)}", file=sys.stderr)
        return 2
    # Options may stand before the command: mlecs --config FILE fit.
    return found[0].run(words) if found else _main(words)


def _unknown(words: Sequence[str]) -> str:
    """Return an error message for a command that does not exist."""
    names = [command.name for command in COMMANDS]
    longer = [name for name in names if name.split()[0] == words[0]]
    close = longer or difflib.get_close_matches(words[0], names, n=1)
    hint = f": did you mean {close[0]!r}?" if close else "."
    given = " ".join(words[:2]) if longer else words[0]
    return f"there is no command {given!r}{hint} The commands are {', '.join(names)}"
