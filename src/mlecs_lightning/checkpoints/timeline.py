"""The timeline of a run folder: its checkpoints in the order of the rounds.

``last``, ``best``, pruning and `export` all use this list. It is a single timeline: a run that
resumes from an earlier checkpoint moves the later ones aside.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlecs_lightning.callbacks.monitor import Monitor
from mlecs_lightning.checkpoints.client_store import client_files, number_of
from mlecs_lightning.storage.digests import SUMS
from mlecs_lightning.storage.folders import claim_folder

__all__ = ["Checkpoint", "checkpoints", "last_round_of", "prune_checkpoints", "set_aside"]

_NAME = re.compile(r"round=(\d+)(-partial)?\.ckpt")
# Files about the last round of a run, apart from checkpoints.
_OF_THE_END = (
    *("summary.json", "predictions.jsonl", "adapters", "metrics.csv", "events.out.*"),
    SUMS,  # last, so the files that an interrupted move leaves behind are still checked
)


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A checkpoint file, ordered by progress of the run.

    Attributes:
        round: Number of its round.
        complete: Whether the round has ended.
        path: The file.
    """

    round: int
    complete: bool
    path: Path = field(compare=False)

    @classmethod
    def named(cls, folder: Path, *, round: int, complete: bool) -> Checkpoint:
        """Return the checkpoint that a round writes into a folder."""
        partial = "" if complete else "-partial"
        return cls(round, complete, folder / f"round={round:04d}{partial}.ckpt")


def checkpoints(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints in a run's ``checkpoints`` folder, the newest last.

    Other file names and subfolders are ignored.
    """
    return sorted(
        Checkpoint(int(match[1]), match[2] is None, path)
        for path in folder.glob("round=*.ckpt")
        if (match := _NAME.fullmatch(path.name))
    )


def prune_checkpoints(
    folder: Path, history: Iterable[Mapping[str, float]], *, monitor: Monitor, save_top_k: int
) -> list[int]:
    """Remove all complete checkpoints except the newest and the k best.

    Args:
        folder: The run's ``checkpoints`` folder.
        history: The metrics of all rounds.
        monitor: Ranks the rounds.
        save_top_k: k; -1 keeps all, 0 only the newest.

    Returns:
        The remaining rounds, in order.
    """
    complete = {each.round: each for each in checkpoints(folder) if each.complete}
    if save_top_k < 0 or not complete:
        return list(complete)
    ranked = [number for number in monitor.ranked(history) if number in complete]
    keep = {max(complete), *ranked[:save_top_k]}
    for number in complete.keys() - keep:
        complete[number].path.unlink()
    return sorted(keep)


# Going back ---------------------------------------------------------------------------------------


def set_aside(run: Path, state: Mapping[str, Any]) -> Path | None:
    """Move everything after a checkpoint to a folder of its own, before the run resumes there.

    Later checkpoints, their client files, and the files about the last round are moved to
    ``abandoned_k``, which is a complete run folder. Nothing is lost, and the run folder keeps a
    single timeline.

    If the process is killed in between, the run can still be resumed, from an earlier round: the
    newest checkpoint is moved first, and a client's file stays as long as a checkpoint names it.

    Args:
        run: The run folder.
        state: Content of the checkpoint from which the run resumes; it is in this folder.

    Returns:
        The new folder, or ``None`` if there was nothing to move.
    """
    folder, partial = run / "checkpoints", state.get("partial")
    at = Checkpoint.named(folder, round=int(state["round"]), complete=partial is None)
    later = [each for each in checkpoints(folder) if each > at]
    shared, only_later = _files_of_clients(folder / "clients", state)
    aside = None
    if later or _rounds_in_summary(run) > at.round + at.complete:
        aside = claim_folder(run, "abandoned")
        _move_the_end(run, aside)
        _move(later, (*shared, *only_later), aside / "checkpoints")
    for path in only_later:
        path.unlink()
    _drop_messages(folder, in_use=partial or {})
    return aside


def last_round_of(client: str, state: Mapping[str, Any]) -> int:
    """Return the round after which a client had the state that a checkpoint holds.

    A store that continues from this number never overwrites the file of another checkpoint.

    Args:
        client: A client.
        state: Content of a checkpoint with its state, or with the name of its file.
    """
    saved, partial = state["clients"][client], state.get("partial")
    if isinstance(saved, str):
        return number_of(saved)
    served = partial is None or client in partial
    return int(state["round"]) - (not served)


def _files_of_clients(folder: Path, state: Mapping[str, Any]) -> tuple[list[Path], list[Path]]:
    """Return the client files that a checkpoint may name, and those that only later ones name."""
    shared: dict[str, Path] = {}
    later = []
    for client, number, path in client_files(folder):
        if client not in state["clients"] or number > last_round_of(client, state):
            later.append(path)
        else:
            shared[client] = path  # the newest of them comes last
    return list(shared.values()), later


def _rounds_in_summary(run: Path) -> int:
    """Return the number of rounds in the summary of a run folder; 0 if there is none."""
    try:
        return int(json.loads((run / "summary.json").read_text(encoding="utf-8"))["rounds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _move_the_end(run: Path, aside: Path) -> None:
    for pattern in _OF_THE_END:
        for path in run.glob(pattern):
            path.rename(aside / path.name)
    if (run / "config.yaml").is_file():
        shutil.copy2(run / "config.yaml", aside / "config.yaml")


def _move(later: list[Checkpoint], files: Iterable[Path], folder: Path) -> None:
    """Move checkpoints, the newest first, after linking the client files that they name."""
    (folder / "clients").mkdir(parents=True)
    for path in files if later else ():
        _link(path, folder / "clients" / path.name)
    for each in reversed(later):
        each.path.rename(folder / each.path.name)


def _link(path: Path, other: Path) -> None:
    """Link a file, which is never changed, under a second name."""
    try:
        os.link(path, other)
    except OSError:  # a file system without hard links
        shutil.copy2(path, other)


def _drop_messages(folder: Path, *, in_use: Mapping[str, Any]) -> None:
    """Remove messages of a killed round, which no checkpoint names."""
    for path in folder.rglob("*.message"):
        if path.stem not in in_use:
            path.unlink()
