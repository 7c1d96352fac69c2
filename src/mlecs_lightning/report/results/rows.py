"""The runs of a matrix, as JSON lines, and the numbers in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlecs_lightning.report.results.configs import flat
from mlecs_lightning.storage.digests import read_checked
from mlecs_lightning.storage.text_files import utf8

__all__ = ["MatrixError", "Row", "is_ceiling", "number_at", "read_lines", "summary_fault", "value"]

_KEYS: dict[str, type | tuple[type, ...]] = {
    "algorithm": str,
    "setting": str,
    "seed": int,
    "rounds": int,
    "seconds": (int, float),
    "commit": str,
    "summary": dict,
}


class MatrixError(ValueError):
    """A file of results cannot be used; the message names file and line."""


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        algorithm: Label of the algorithm, with what differs from its defaults.
        setting: Label of data and clients: runs of one setting can be compared.
        seed: Seed of the training.
        rounds: Rounds of the run.
        seconds: How long it took.
        commit: What it ran with.
        summary: Its summary.json.
        settings: Its configuration, flat, or as far as it differs from that of the other runs;
            empty if it is not known. In a file it stands as an object under ``options``.
    """

    algorithm: str
    setting: str
    seed: int
    rounds: int
    seconds: float
    commit: str
    summary: Mapping[str, Any]
    settings: Mapping[str, str] = field(default_factory=dict)


def read_lines(*paths: str | Path) -> list[Row]:
    """Read the runs of one matrix.

    Args:
        paths: Files of JSON lines; empty lines are skipped, other keys than those of `Row` too.

    Returns:
        The runs, in the order of the lines.

    Raises:
        MatrixError: If a file is missing, a line is no such object, or two lines are of the same
            setting, algorithm and seed; all faults in one message.
    """
    rows: dict[tuple[str, str, int], tuple[str, Row]] = {}
    faults = []
    for path in map(Path, paths):
        try:
            lines = utf8(read_checked(path)).splitlines()
        except (OSError, ValueError) as error:
            faults.append(f"{path}: cannot be read as JSON lines: {error}")
            continue
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                row = _row(line)
            except ValueError as error:
                faults.append(f"{place}: {error}")
                continue
            before, _ = rows.setdefault((row.setting, row.algorithm, row.seed), (place, row))
            if before != place:
                faults.append(
                    f"{place}: setting {row.setting!r}, algorithm {row.algorithm!r}, seed "
                    f"{row.seed} is also in {before}"
                )
    if faults:
        raise MatrixError("\n".join(faults))
    return [row for _, row in rows.values()]


def _row(line: str) -> Row:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error}); was the writing cut short?") from error
    if not isinstance(content, dict):
        raise ValueError(f"a line is one object with the keys {list(_KEYS)}")
    for key, kind in _KEYS.items():
        if key not in content:
            raise ValueError(f"the key {key!r} is missing; a line has {list(_KEYS)}")
        if not isinstance(content[key], kind) or isinstance(content[key], bool):
            raise ValueError(f"{key!r} is {content[key]!r:.60}, allowed: {_kind(kind)}")
    if fault := summary_fault(content["summary"]):
        raise ValueError(f"'summary': {fault}")
    options = content.get("options", {})
    if not isinstance(options, dict):
        raise ValueError(f"'options' is {options!r:.60}, allowed: an object")
    return Row(**{key: content[key] for key in _KEYS}, settings=flat(options))


def summary_fault(summary: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the form of a summary, if anything; it may lack what it likes."""
    for key in (
        "clients",
        "mean",
        "server",
        "constant",
        "faults",
        "communication",
        "stream",
        "confusion",
        "privacy",
    ):
        if not isinstance(summary.get(key, {}), dict):
            return f"{key!r} is {summary[key]!r:.60}, allowed: an object"
    for name, client in summary.get("clients", {}).items():
        if not isinstance(client, dict):
            return f"client {name!r} is {client!r:.60}, allowed: an object"
    if fault := _confusion_fault(summary.get("confusion", {})):
        return f"'confusion': {fault}"
    streamed = summary.get("stream", {}).get("clients", {})
    for name, client in streamed.items() if isinstance(streamed, dict) else ():
        phases = client.get("phases") if isinstance(client, dict) else None
        if not isinstance(phases, list) or not all(map(_is_phase, phases)):
            return f"'stream': client {name!r}: 'phases' is {phases!r:.60}, allowed: [round, name]"
    return None


def _confusion_fault(confusion: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the counts of answers by class, if anything."""
    names, clients = confusion.get("classes", []), confusion.get("clients", {})
    if not isinstance(names, list) or not isinstance(clients, dict):
        return "allowed: a list of 'classes' and an object of 'clients'"
    widths = [len(names) + 1] * len(names)
    for party, rows in {**clients, "server": confusion.get("server")}.items():
        if party == "server" and rows is None:
            continue
        sound = isinstance(rows, list) and all(isinstance(row, list) for row in rows)
        if not sound or [len(row) for row in rows] != widths:
            return f"{party!r}: allowed: {len(names)} rows of {len(names) + 1} counts"
        if any(type(count) is not int or count < 0 for row in rows for count in row):
            return f"{party!r}: counts are whole numbers, not below zero"
    return None


def _is_phase(entry: object) -> bool:
    return isinstance(entry, list) and list(map(type, entry)) == [int, str]


def _kind(kind: type | tuple[type, ...]) -> str:
    names = {str: "a string", int: "a whole number", float: "a number", dict: "an object"}
    return names[kind[-1] if isinstance(kind, tuple) else kind]


def value(row: Row, metric: str) -> float | None:
    """Return a number of a run.

    Args:
        row: The run.
        metric: ``seconds``, ``rounds``, or a path into the summary, its keys joined by dots:
            ``mean.all.macro_f1``, ``server.rouge_lsum``, ``communication.uplink_bytes``. Also
            ``worst.all.macro_f1`` and ``worst.own....``: the lowest of any client.

    Returns:
        The number; ``None`` if the run does not have it or it is NaN. `Centralized` moves all data
        to the server, which nothing counts, and so has no communication.
    """
    head, *rest = metric.split(".")
    if head in ("seconds", "rounds"):
        return float(getattr(row, head))
    if head == "communication" and is_ceiling(row):
        return None
    if head == "worst":
        clients = row.summary.get("clients", {})
        found = [number_at(client, *rest) for client in clients.values()]
        return min((each for each in found if each is not None), default=None)
    return number_at(row.summary, head, *rest)


def number_at(tree: Any, *keys: str) -> float | None:  # noqa: ANN401 - JSON
    """Return the number below nested keys; ``None`` if there is none, or NaN."""
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    sound = isinstance(tree, (int, float)) and not isinstance(tree, bool) and tree == tree
    return float(tree) if sound else None


def is_ceiling(row: Row) -> bool:
    """Return whether a run had all data in one place: a bound, and no rival."""
    return row.summary.get("algorithm") == "Centralized"
