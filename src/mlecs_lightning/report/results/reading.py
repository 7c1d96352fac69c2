"""Run folders and files of JSON lines, as one list of runs with labels."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from mlecs_lightning.renamed_keys import with_present_keys
from mlecs_lightning.report.results.configs import flat, is_of_data, told_apart
from mlecs_lightning.report.results.rows import MatrixError, Row, read_lines, summary_fault
from mlecs_lightning.storage.digests import read_checked
from mlecs_lightning.storage.folders import numbered_folders
from mlecs_lightning.storage.paths import expanded
from mlecs_lightning.storage.text_files import utf8
from mlecs_lightning.storage.yaml_text import parse_yaml

__all__ = ["ReportError", "Run", "read_mapping", "read_runs"]

_FILES = ("config.yaml", "metrics.csv", "summary.json")


class ReportError(ValueError):
    """A run cannot be reported on; the message names it and what was looked for."""


@dataclass(frozen=True)
class Run:
    """One run, from its folder or from a line of a matrix.

    Attributes:
        place: Where it was read.
        algorithm: Label: the class, with what tells it apart from others of the report.
        setting: Label of data and clients: runs of one setting can be compared.
        seed: Seed of the training.
        rounds: Rounds that have ended.
        planned: Rounds that were to be; ``None`` if that is not known.
        history: Metrics by round, ``step`` being the number of rounds that have ended.
        summary: Its summary.json; ``None`` if it has not ended.
        modalities: Those of each client, as far as they are known.
        commit: What it ran with, if that was noted.
        config: Its configuration; empty if it is not known.
        class_path: Class of the algorithm, or its bare name; empty if it is not known.
        settings: What a line of a matrix says of its configuration.
    """

    place: str
    algorithm: str
    setting: str
    seed: int | None
    rounds: int
    planned: int | None
    history: tuple[Mapping[str, float], ...]
    summary: Mapping[str, Any] | None
    modalities: Mapping[str, tuple[str, ...]]
    commit: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    class_path: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether it has ended and was tested."""
        return self.summary is not None

    @property
    def method(self) -> str:
        """The name of the algorithm itself, whatever its settings."""
        named = (self.summary or {}).get("algorithm") or self.class_path.rpartition(".")[2]
        return str(named or self.algorithm)

    @property
    def leaves(self) -> Mapping[str, str]:
        """The configuration, flat, as far as it is known."""
        return self.settings or flat(self.config)

    def row(self) -> Row:
        """Return a run that has ended as a row of a matrix."""
        assert self.summary is not None
        seconds = float(self.summary.get("seconds", math.nan))
        seed = -1 if self.seed is None else self.seed
        return Row(
            self.algorithm,
            self.setting,
            seed,
            self.rounds,
            seconds,
            self.commit,
            self.summary,
            self.leaves,
        )


def read_runs(places: Sequence[str | Path]) -> list[Run]:
    """Read runs.

    Args:
        places: Run folders; folders of ``version_k``, which stand for all of them; files of JSON
            lines (see `mlecs_lightning.report.results.matrix`).

    Raises:
        ReportError: If one is missing or broken; all faults in one message.
    """
    folders: list[Path] = []
    files: list[Path] = []
    faults: list[str] = []
    for place in map(expanded, places):
        if place.is_file():
            files.append(place)
        elif place.is_dir():
            found = _folders(place)
            folders += found
            if not found:
                faults.append(_nothing_in(place))
        else:
            faults.append(
                f"{place}: there is no such folder or file; a run is a folder with "
                f"{', '.join(_FILES)}, or a file of JSON lines"
            )
    runs = []
    read: list[tuple[Run, dict[str, Any]]] = []
    for folder in dict.fromkeys(folders):
        try:
            read.append(_read_folder(folder))
        except ReportError as error:
            faults.append(str(error))
    try:
        files = list(dict.fromkeys(files))
        read_lines(*files)  # no run may be in two of them
        runs = [_of_row(row, file) for file in files for row in read_lines(file)]
    except MatrixError as error:
        faults.append(str(error))
    if faults:
        raise ReportError("\n".join(faults))
    return _labelled(read) + runs


def _nothing_in(place: Path) -> str:
    inside = sorted(p for p in place.iterdir() if p.is_dir() and _folders(p))
    hint = f"; there are runs in {', '.join(map(str, dict.fromkeys(inside)))}" if inside else ""
    return f"{place}: no run: found neither metrics.csv nor summary.json, nor version_k{hint}"


def _is_run(folder: Path) -> bool:
    return (folder / "metrics.csv").is_file() or (folder / "summary.json").is_file()


def _folders(place: Path) -> list[Path]:
    if _is_run(place):
        return [place]
    return [p for p in numbered_folders(place, "version") if _is_run(p)]


# One folder ---------------------------------------------------------------------------------------


def _read_folder(folder: Path) -> tuple[Run, dict[str, Any]]:
    """Return a run, without labels, and its configuration; empty if there is none."""
    config = with_present_keys(read_mapping(folder / "config.yaml", parse_yaml))
    summary = read_mapping(folder / "summary.json", json.loads)
    if fault := summary_fault(summary):
        raise ReportError(f"{folder}: summary.json: {fault}")
    history = tuple(_history(folder / "metrics.csv"))
    rounds = max([int(row["step"]) for row in history], default=0)
    trainer = _part(config, "trainer")
    planned = 1 if trainer.get("fast_dev_run") else trainer.get("max_rounds")
    planned = planned if isinstance(planned, int) else None
    # A run that went on has the summary of where it ended the first time, until it ends again.
    # One that a callback ended tells of how many rounds it was to be, until it is to be longer.
    ended = summary.get("rounds", rounds)
    whole = ended >= (planned or 0) or summary.get("planned") == planned
    finished = bool(summary) and ended >= rounds and whole
    if finished:
        rounds = ended
    class_path = str(_part(config, "algorithm").get("class_path", ""))
    algorithm = str(summary.get("algorithm") or class_path.rpartition(".")[2] or "unknown")
    run = Run(
        str(folder),
        algorithm,
        "",
        summary.get("seed", config.get("seed_everything")),
        rounds,
        planned,
        history,
        summary if finished else None,
        _modalities(summary, config),
        config=config,
        class_path=class_path or algorithm,
    )
    return run, config


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = config.get(key)
    return part if isinstance(part, dict) else {}


def read_mapping(path: Path, parse: Any) -> dict[str, Any]:  # noqa: ANN401 - a parser
    """Return what a file holds; empty if it is not there.

    Raises:
        ReportError: If it is broken, or is not what the run wrote.
    """
    if not path.is_file():
        return {}
    try:
        content = parse(utf8(read_checked(path)))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ReportError(f"{path.parent}: {path.name} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise ReportError(f"{path.parent}: {path.name} holds no object with keys")
    return content


def _history(path: Path) -> Iterator[dict[str, float]]:
    """Yield the rounds of metrics.csv; the warm-up, step 0, is not one."""
    if not path.is_file():
        return
    try:
        text = utf8(read_checked(path))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path.parent}: {path.name} cannot be read: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if "step" not in (reader.fieldnames or ["step"]):
            raise ReportError(f"{path.parent}: {path.name} has no column 'step'")
        for line in reader:
            row = {key: float(text) for key, text in line.items() if text}
            if row.get("step", 0) >= 1:
                yield {k: v for k, v in row.items() if math.isfinite(v)}
    except ReportError:
        raise
    except (TypeError, ValueError, csv.Error) as error:
        raise ReportError(
            f"{path.parent}: {path.name}, line {reader.line_num}, cannot be read: {error}"
        ) from error


def _modalities(
    summary: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
    """Return the modalities of each client; empty where clients are drawn and none has ended."""
    clients = summary.get("clients") or _part(config, "clients")
    return {
        str(name): tuple(map(str, client["modalities"]))
        for name, client in clients.items()
        if isinstance(client, dict) and isinstance(client.get("modalities"), list)
    }


def _of_row(row: Row, file: Path) -> Run:
    return Run(
        str(file),
        row.algorithm,
        row.setting,
        row.seed,
        row.rounds,
        row.rounds,
        (),
        row.summary,
        _modalities(row.summary, {}),
        row.commit,
        settings=row.settings,
    )


# Labels -------------------------------------------------------------------------------------------


def _labelled(read: Sequence[tuple[Run, dict[str, Any]]]) -> list[Run]:
    """Give runs of one configuration, but for the seed, one label."""
    # A batch size is no part of the data: runs that differ in it can be compared, with that said.
    whole = [flat(config) for _, config in read]
    data = [{k: v for k, v in each.items() if is_of_data(k)} for each in whole]
    bases = []
    for run, config in read:
        kind = str(_part(config, "data").get("class_path", "")).rpartition(".")[2]
        count = len(run.modalities) or _part(config, "clients").get("count", "?")
        bases.append(f"{kind or 'unknown data'}, {count} client{'s' * (count != 1)}")
    settings = told_apart(bases, data)
    rest = [{k: v for k, v in each.items() if not is_of_data(k)} for each in whole]
    within = [(setting, run.algorithm) for setting, (run, _) in zip(settings, read, strict=True)]
    algorithms = [
        label if run.finished else f"{label}, unfinished"
        for label, (run, _) in zip(
            told_apart([algorithm for _, algorithm in within], rest, within), read, strict=True
        )
    ]
    return [
        replace(run, setting=setting, algorithm=algorithm)
        for (run, _), setting, algorithm in zip(read, settings, algorithms, strict=True)
    ]
