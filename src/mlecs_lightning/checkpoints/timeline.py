"""The checkpoints of a run folder: one list, in the order of the rounds.

Whatever names a checkpoint (``last``, ``best``, pruning, `export`) goes by this list. Its rounds
are those of one timeline: a run that goes on from an earlier one sets those behind it aside.
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
# What a run folder says of its last round, beside the checkpoints.
_OF_THE_END = (
    *("summary.json", "predictions.jsonl", "adapters", "metrics.csv", "events.out.*"),
    SUMS,  # last: what is left behind of a move that was cut short is still checked
)


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A checkpoint, ordered by how far the run had come.

    Attributes:
        round: Number of the round that has ended, or is under way.
        complete: Whether it has ended.
        path: The file.
    """

    round: int
    complete: bool
    path: Path = field(compare=False)

    @classmethod
    def named(cls, folder: Path, *, round: int, complete: bool) -> Checkpoint:
        """Return the one that a round writes into a folder."""
        partial = "" if complete else "-partial"
        return cls(round, complete, folder / f"round={round:04d}{partial}.ckpt")


def checkpoints(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints in a run's ``checkpoints`` folder, the newest last.

    Files of other names are none; neither is what lies in folders below.
    """
    return sorted(
        Checkpoint(int(match[1]), match[2] is None, path)
        for path in folder.glob("round=*.ckpt")
        if (match := _NAME.fullmatch(path.name))
    )


def prune_checkpoints(
    folder: Path, history: Iterable[Mapping[str, float]], *, monitor: Monitor, save_top_k: int
) -> list[int]:
    """Remove all complete checkpoints but the newest and the k best.

    Args:
        folder: The run's ``checkpoints`` folder.
        history: The metrics of all rounds.
        monitor: What rounds are compared by.
        save_top_k: How many; -1 keeps all, 0 only the newest.

    Returns:
        The rounds that are left, in order.
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
    """Set aside what comes after a checkpoint of a run folder, as the run goes on from there.

    Later checkpoints, with the files of clients that they name, and what the folder says of its
    last round go to ``abandoned_k``, a run folder of its own. Nothing is lost, and nothing is left
    that belongs to another timeline than the rounds to come.

    A kill in between leaves a run that ends earlier than it did, and can be gone on with: the
    newest checkpoint goes first, and a client's file stays until nothing names it.

    Args:
        run: The run folder.
        state: The checkpoint that is gone on from; it is in the list of the folder.

    Returns:
        The new folder; ``None`` if there was nothing to set aside.
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
    """Return the round at whose end a client had the state that a checkpoint holds of it.

    A store that goes on under this number writes no file that another checkpoint would take for
    its own.

    Args:
        client: A client.
        state: A checkpoint with a state of it, or the name of a file with one.
    """
    saved, partial = state["clients"][client], state.get("partial")
    if isinstance(saved, str):
        return number_of(saved)
    served = partial is None or client in partial
    return int(state["round"]) - (not served)


def _files_of_clients(folder: Path, state: Mapping[str, Any]) -> tuple[list[Path], list[Path]]:
    """Return the files that a checkpoint and later ones may name, and those only later ones may."""
    shared: dict[str, Path] = {}
    later = []
    for client, number, path in client_files(folder):
        if client not in state["clients"] or number > last_round_of(client, state):
            later.append(path)
        else:
            shared[client] = path  # the newest of them comes last
    return list(shared.values()), later


def _rounds_in_summary(run: Path) -> int:
    """Return after how many rounds the run of a folder ended; 0 if it has not."""
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
    """Move checkpoints, the newest first; the files of clients that they name are there before."""
    (folder / "clients").mkdir(parents=True)
    for path in files if later else ():
        _link(path, folder / "clients" / path.name)
    for each in reversed(later):
        each.path.rename(folder / each.path.name)


def _link(path: Path, other: Path) -> None:
    """Give a file a second name: it is written once and never changed."""
    try:
        os.link(path, other)
    except OSError:  # a file system without hard links
        shutil.copy2(path, other)


def _drop_messages(folder: Path, *, in_use: Mapping[str, Any]) -> None:
    """Remove messages of a round that was killed: no checkpoint names them."""
    for path in folder.rglob("*.message"):
        if path.stem not in in_use:
            path.unlink()
