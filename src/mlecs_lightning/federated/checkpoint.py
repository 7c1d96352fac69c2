"""One file a round, from which a run goes on as if it had never stopped."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "FORMAT_VERSION",
    "CheckpointError",
    "find_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]

FORMAT_VERSION = 1
_NAME = re.compile(r"round=(\d+)\.ckpt")


class CheckpointError(Exception):
    """A checkpoint that is not there, cannot be read, or does not fit; says which and why."""


def save_checkpoint(folder: Path, state: dict[str, Any], *, round: int) -> Path:
    """Write the checkpoint of a round: to a temporary name, synced, then renamed.

    A run killed while writing leaves the previous checkpoint and at most a ``.tmp`` file.

    Args:
        folder: The run's ``checkpoints`` folder; made if missing.
        state: Tensors, numbers, strings, lists and dicts only, so that a weights-only load reads
            it.
        round: Number of the round that has ended.

    Returns:
        The file's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"round={round:04d}.ckpt"
    staging = path.with_suffix(".tmp")
    with staging.open("wb") as file:
        torch.save({"format_version": FORMAT_VERSION, "round": round, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # the rename itself must survive a power cut, too
    finally:
        os.close(handle)
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, weights only: nothing in the file is executed.

    Raises:
        CheckpointError: If the file is missing, unreadable or of another format version.
    """
    if not path.is_file():
        raise CheckpointError(f"ckpt_path: no file {str(path)!r}")
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise CheckpointError(f"ckpt_path: cannot read {str(path)!r}: {error}") from error
    version = state.get("format_version") if isinstance(state, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"ckpt_path: {str(path)!r} has format_version {version}, this version reads "
            f"{FORMAT_VERSION}"
        )
    return state


def find_checkpoint(ckpt_path: str, *, run_root: Path) -> Path:
    """Resolve ``last``, ``best`` or a file name.

    ``last`` is the highest round of the newest version that has any; ``best`` is the round of that
    version with the lowest monitored value, as the last checkpoint's history tells.

    Args:
        ckpt_path: ``last``, ``best`` or a path.
        run_root: The folder that holds the ``version_k`` folders.

    Raises:
        CheckpointError: If there is none.
    """
    if ckpt_path not in ("last", "best"):
        return Path(ckpt_path)
    versions = sorted(run_root.glob("version_*"), key=lambda p: int(p.name.rpartition("_")[2]))
    for version in reversed(versions):
        rounds = {
            int(match[1]): path
            for path in (version / "checkpoints").glob("*.ckpt")
            if (match := _NAME.fullmatch(path.name))
        }
        if rounds:
            newest = rounds[max(rounds)]
            return newest if ckpt_path == "last" else rounds[_best(newest, set(rounds))]
    raise CheckpointError(
        f"ckpt_path: {ckpt_path!r}, but there is no checkpoint under {str(run_root)!r}"
    )


def _best(newest: Path, rounds: set[int]) -> int:
    state = load_checkpoint(newest)
    monitor = state["monitor"]
    values = {
        int(row["round"]): row[monitor]
        for row in state["history"]
        if int(row["round"]) in rounds and math.isfinite(row.get(monitor, math.nan))
    }
    if not values:
        raise CheckpointError(
            f"ckpt_path: 'best', but no round of {newest.parent} has a {monitor!r}"
        )
    return min(values, key=values.__getitem__)
