"""Reference pages of the documentation site, made from the parser and the table of commands."""

from __future__ import annotations

import contextlib
import inspect
import re
from argparse import Action
from collections.abc import Iterable, Iterator
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typehints import ActionTypeHint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from mlecs_lightning import algorithms
from mlecs_lightning.cli import FederatedCLI
from mlecs_lightning.commands import COMMANDS, overview
from mlecs_lightning.data import FederatedDataModule, Schedule
from mlecs_lightning.lazy import import_all
from mlecs_lightning.report.markdown import escape_markdown, markdown_table
from mlecs_lightning.rounds import Algorithm
from mlecs_lightning.wire import Codec

ROLE = re.compile(r":\w+:`~?([^`]*)`")
SECTIONS = {
    "": "Top level",
    "trainer": "trainer",
    "data": "data",
    "algorithm": "algorithm",
    "server": "server and edge",
    "clients": "clients",
}
# Abstract, or named for others to build on.
SILENT = {"LocalTraining"}


class _Stop(Exception):
    """The parser is built."""


class _Parser(FederatedCLI):
    """Builds the parser of ``fit`` and goes no further."""

    @staticmethod
    def subcommands() -> dict[str, Any]:
        return {"fit": FederatedCLI.subcommands()["fit"]}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        _Parser.fit = self._parser("fit")
        raise _Stop


def commands_page() -> str:
    """Return the page of all commands, from the table that the program itself uses."""
    rows = [(f"`mlecs {each.name}`", escape_markdown(each.about)) for each in COMMANDS]
    table = markdown_table(("command", "what it does"), rows, text=(True, True))
    return (
        "# Commands\n\n"
        f"{table}\n"
        "`mlecs COMMAND --help` lists the options of a command. Commands that take the keys of a "
        "configuration also have `--help_all`, which says all about them. In a checkout, "
        f"`python cli.py` is the same as `mlecs`.\n\n```text\n{overview()}\n```\n"
    )


def configuration_page() -> str:
    """Return the page of all configuration keys, with types and defaults."""
    with contextlib.suppress(_Stop):
        _Parser([])
    rows: dict[str, list[tuple[str, ...]]] = {}
    for action in _options(_Parser.fit):
        section = action.dest.partition(".")[0] if "." in action.dest else action.dest
        rows.setdefault(section if section in SECTIONS else "", []).append(_row(action))
        if section in ("warmup", "edge"):
            rows[""].pop()
    lines = [
        "# Configuration reference\n",
        "Every key of a YAML file, made from the parser when this site was built. On the command "
        "line the same keys are options: `--trainer.max_rounds 6`. Keys of `edge` are those of "
        "`server`; `warmup` takes the arguments of `lightning.Trainer`, and those of `trainer` "
        "where they are the same. [The configuration of a run](../configuration.md) says how "
        "files, names and options work together.\n",
    ]
    for section, title in SECTIONS.items():
        lines += [f"## {title}\n", _table(rows.get(section, []))]
    import_all(algorithms)
    for title, base in (
        ("Data sets", FederatedDataModule),
        ("Algorithms", Algorithm),
        ("Schedules", Schedule),
        ("Codecs", Codec),
    ):
        lines.append(f"## {title}\n")
        for kind in sorted(_subclasses(base), key=lambda kind: kind.__name__):
            lines += _class_part(kind)
    return "\n".join(lines)


def _options(parser: ArgumentParser) -> Iterator[Action]:
    for action in parser._actions:
        known = isinstance(action, ActionTypeHint) or action.dest in ("seed_everything", "clients")
        if known and action.option_strings and not action.dest.endswith(".help"):
            yield action


def _row(action: Action) -> tuple[str, ...]:
    default = action.default
    silent = default is None or default == {} or isinstance(default, Namespace)
    shown = "" if silent else f"`{_plain(default)}`"
    about = ROLE.sub(r"\1", (action.help or "").replace("``", "`"))
    about = re.sub(r"\s*\((?:required, )?type:.*", "", about, flags=re.DOTALL).replace("%%", "%")
    return f"`{action.dest}`", _cell(about), shown


def _plain(default: object) -> str:
    text = str(default).replace("|", "\\|").replace("\n", " ")
    return {"True": "true", "False": "false"}.get(text, text)


def _cell(text: str) -> str:
    text = re.sub(r"\bNone\b", "null", text)  # as in a YAML file
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    return markdown_table(("key", "meaning", "default"), rows, text=(True, True, True))


def _subclasses(base: type) -> set[type]:
    """Return the concrete classes of this package below a base."""
    found = set()
    for kind in base.__subclasses__():
        found |= _subclasses(kind)
        if kind.__module__.startswith("mlecs_lightning") and not inspect.isabstract(kind):
            found.add(kind)
    return {k for k in found if k.__name__ not in SILENT and not k.__name__.startswith("_")}


def _class_part(kind: type) -> list[str]:
    parser = ArgumentParser()
    parser.add_class_arguments(kind, as_group=False)
    about = (inspect.getdoc(kind) or "").splitlines()[0].replace("``", "`")
    part = [f"### {kind.__name__}\n", f"{_cell(about)}\n"]
    rows = [_row(action) for action in _options(parser)]
    return [*part, _table(rows)] if rows else [*part, "It has no arguments.\n"]
