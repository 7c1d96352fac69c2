"""A help of a line or two for each option, in place of jsonargparse's full one."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator

from lightning.pytorch.cli import LightningArgumentParser

__all__ = ["short_help"]

_WIDTH = 110
_COLUMN = 43
# Sections of a configuration, in the order of the YAML files.
_SECTIONS = ("trainer", "warmup", "data", "algorithm", "server", "edge", "clients")
_FIXED = "\0"  # in the place of a blank at which no line ends
_SAME = "edge"  # has the options of `server`


def short_help(parser: LightningArgumentParser, command: str) -> str:
    """Return the options of a command in short: key, meaning and default.

    Options of `lightning.Trainer` under ``warmup`` are shown for the command ``warmup`` only, and
    those of ``edge``, which are the same as those of ``server``, once.

    Args:
        parser: The command's parser.
        command: The command.
    """
    options = list(_options(parser))
    lines = [f"usage: mlecs {command} --config FILE_OR_NAME [--KEY VALUE ...]", ""]
    lines += [_line("--config", "A YAML file, or a name that `mlecs configs` lists.", None)]
    lines += [_line(*each) for each in options if _section(each[0]) == ""]
    for section in _SECTIONS:
        if section == _SAME or (section == "warmup" and command != "warmup"):
            continue
        own = [each for each in options if _section(each[0]) == section]
        if own:
            title = "server and edge (the same keys)" if section == "server" else section
            lines += ["", f"{title}:", *(_line(*each) for each in own)]
    lines += [
        "",
        f"mlecs {command} --help_all                   all options, with types and allowed values",
        f"mlecs {command} --algorithm.help MLECS       the arguments of a class (--data.help, too)",
        f"mlecs {command} --config ... --print_config  all keys with their values",
    ]
    return "\n".join(lines)


def _section(flag: str) -> str:
    first = flag.removeprefix("--").partition(".")[0]
    return first if first in _SECTIONS else ""


def _options(parser: LightningArgumentParser) -> Iterator[tuple[str, str, object]]:
    """Yield flag, help and default of each option that holds one value."""
    skipped = {"help", "config", "print_config"}
    groups = {
        action.dest for action in parser._actions if type(action).__name__ == "_ActionConfigLoad"
    }
    for action in parser._actions:
        flags = [flag for flag in action.option_strings if flag.startswith("--")]
        if not flags or action.dest in skipped | groups or flags[0].endswith(".help"):
            continue
        if action.help is argparse.SUPPRESS:
            continue
        yield flags[0], action.help or "", action.default


def _line(flag: str, about: str, default: object) -> str:
    """Return flag, first sentence and default, in one line if there is room."""
    known = f" [{default}]" if isinstance(default, str | int | float) else ""
    plain = " ".join(re.sub(r":\w+:`([^`]*)`|``?([^`]*)``?", r"\1\2", about).split())
    plain = re.sub(r"\bNone\b", "null", plain)  # as in a YAML file
    sentence = re.split(r"(?<=[a-z0-9)\]])[.;] ", plain)[0].rstrip(".")
    # A long sentence goes on below; a default is never torn apart.
    return textwrap.fill(
        sentence + known.replace(" ", _FIXED),
        _WIDTH,
        initial_indent=f"  {flag:<{_COLUMN - 2}} ",
        subsequent_indent=" " * (_COLUMN + 3),
        break_long_words=False,
        break_on_hyphens=False,
    ).replace(_FIXED, " ")
