"""One file a round, from which a run goes on as if it had never stopped."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mlecs_lightning.federated.state import write_atomically
from mlecs_lightning.paths import expanded

__all__ = [
    "FORMAT_VERSION",
    "CheckpointError",
    "check_config",
    "checkpoint_of",
    "find_checkpoint",
    "load_checkpoint",
    "prune_checkpoints",
    "save_checkpoint",
]

FORMAT_VERSION = 1
_NAME = re.compile(r"round=(\d+)(-partial)?\.ckpt")

# Options that say where and how a run goes on, not what it computes.
_FREE = {
    *("config", "ckpt_path", "warmup", "data.init_args.root", "data.init_args.num_workers"),
    *("trainer.max_rounds", "trainer.fast_dev_run", "trainer.warmup_ckpt_path"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.callbacks", "trainer.logger", "trainer.name", "trainer.default_root_dir"),
    *("trainer.enable_checkpointing", "trainer.enable_progress_bar", "trainer.store"),
    *("trainer.save_top_k", "trainer.monitor", "trainer.allow_other_config", "trainer.bertscore"),
    *("trainer.check_val_every_n_rounds", "trainer.limit_val_batches"),
    *("trainer.limit_test_batches", "trainer.max_message_bytes"),
}


class CheckpointError(Exception):
    """A checkpoint that is not there, cannot be read, or does not fit; says which and why."""


def save_checkpoint(
    folder: Path, state: dict[str, Any], *, round: int, complete: bool = True
) -> Path:
    """Write the checkpoint of a round: to a temporary name, synced, then renamed.

    A run killed while writing leaves the previous checkpoint and at most a ``.tmp`` file.

    Args:
        folder: The run's ``checkpoints`` folder; made if missing.
        state: Tensors, numbers, strings, lists and dicts only, so that a weights-only load reads
            it.
        round: Number of the round that has ended, or is under way.
        complete: Whether it has ended. A complete checkpoint takes the place of partial ones.

    Returns:
        The file's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"round={round:04d}.ckpt" if complete else f"round={round:04d}-partial.ckpt")
    write_atomically(path, {"format_version": FORMAT_VERSION, "round": round, **state})
    if complete:
        for partial in folder.glob("round=*-partial.ckpt"):
            partial.unlink()
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
        raise CheckpointError(
            f"ckpt_path: {str(path)!r} is no checkpoint, or is damaged: {error}"
        ) from error
    version = state.get("format_version") if isinstance(state, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"ckpt_path: {str(path)!r} has format_version {version}, this version reads "
            f"{FORMAT_VERSION}"
        )
    return state


def checkpoint_of(run: Path) -> Path:
    """Return the newest complete checkpoint of a run folder, or the path itself if it is a file.

    Raises:
        CheckpointError: If there is none.
    """
    if run.is_file():
        return run
    complete, _ = _rounds(run / "checkpoints")
    if not complete:
        raise CheckpointError(
            f"{str(run)!r}: no checkpoint of a whole round in it; expected a run folder, such as "
            "runs/NAME/version_0, or a file round=....ckpt"
        )
    return complete[max(complete)]


def find_checkpoint(ckpt_path: str, *, run_root: Path) -> Path:
    """Resolve ``last``, ``best`` or a file name.

    ``last`` is the newest state of the newest version that has any, be it in the middle of a round;
    ``best`` is the round of that version with the lowest monitored value, as the last checkpoint's
    history tells.

    Args:
        ckpt_path: ``last``, ``best`` or a path.
        run_root: The folder that holds the ``version_k`` folders.

    Raises:
        CheckpointError: If there is none.
    """
    if ckpt_path not in ("last", "best"):
        return expanded(ckpt_path, key="ckpt_path")
    versions = sorted(run_root.glob("version_*"), key=lambda p: int(p.name.rpartition("_")[2]))
    for version in reversed(versions):
        complete, partial = _rounds(version / "checkpoints")
        if ckpt_path == "last" and (complete or partial):
            newest = max(complete.keys() | partial.keys())
            return complete[newest] if newest in complete else partial[newest]
        if complete:
            return complete[_best(complete)]
    raise CheckpointError(
        f"ckpt_path: {ckpt_path!r}, but there is no checkpoint under {str(run_root)!r}"
    )


def _rounds(folder: Path) -> tuple[dict[int, Path], dict[int, Path]]:
    """Return the complete and the partial checkpoints of a folder by round."""
    found: tuple[dict[int, Path], dict[int, Path]] = ({}, {})
    for path in folder.glob("*.ckpt"):
        if match := _NAME.fullmatch(path.name):
            found[match[2] is not None][int(match[1])] = path
    return found


def _ranked(history: Iterable[Mapping[str, float]], monitor: str) -> list[int]:
    """Return the rounds that have a finite monitored value, the best first."""
    values = {
        int(row["round"]): row[monitor]
        for row in history
        if math.isfinite(row.get(monitor, math.nan))
    }
    return sorted(values, key=values.__getitem__)


def _best(rounds: Mapping[int, Path]) -> int:
    newest = rounds[max(rounds)]
    state = load_checkpoint(newest)
    for best in _ranked(state["history"], state["monitor"]):
        if best in rounds:
            return best
    raise CheckpointError(
        f"ckpt_path: 'best', but no round of {newest.parent} has a {state['monitor']!r}"
    )


def prune_checkpoints(
    folder: Path, history: Iterable[Mapping[str, float]], *, monitor: str, save_top_k: int
) -> list[int]:
    """Remove all complete checkpoints but the newest and the k best.

    Args:
        folder: The run's ``checkpoints`` folder.
        history: The metrics of all rounds.
        monitor: The value, smaller is better, that rounds are compared by.
        save_top_k: How many; -1 keeps all, 0 only the newest.

    Returns:
        The rounds that are left, in order.
    """
    complete, _ = _rounds(folder)
    if save_top_k < 0 or not complete:
        return sorted(complete)
    ranked = [r for r in _ranked(history, monitor) if r in complete]
    keep = {max(complete), *ranked[:save_top_k]}
    for number in complete.keys() - keep:
        complete[number].unlink()
    return sorted(keep)


def check_config(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuse to go on with another configuration than that of the checkpoint.

    Options that change nothing of what is computed may differ: where, on how many devices, how
    long, what is shown.

    Raises:
        CheckpointError: If anything else differs; it names every key with both values.
    """
    if not saved or not present:
        return  # a trainer that was used from Python without a configuration
    old, new = _flat(saved), _flat(present)
    faults = [
        f"{key}: {old.get(key)!r} in the checkpoint, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and not any(key == free or key.startswith(f"{free}.") for free in _FREE)
    ]
    if faults:
        raise CheckpointError(
            "\n".join(
                [
                    "ckpt_path: the checkpoint is of another configuration "
                    "(--trainer.allow_other_config true goes on all the same):",
                    *faults,
                ]
            )
        )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
