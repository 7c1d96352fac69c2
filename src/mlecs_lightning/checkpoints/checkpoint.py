"""Checkpoints: one file per round, from which a run resumes with identical results."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlecs_lightning.callbacks.monitor import Monitor
from mlecs_lightning.checkpoints.timeline import Checkpoint, checkpoints
from mlecs_lightning.class_paths import import_class
from mlecs_lightning.differences import alike, default_arguments, differences
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.renamed_keys import with_present_keys
from mlecs_lightning.storage.files import (
    DamagedFileError,
    check_tensors,
    load_tensors,
    save_tensors,
)
from mlecs_lightning.storage.folders import numbered_folders
from mlecs_lightning.storage.paths import expanded

__all__ = [
    "FORMAT_VERSION",
    "CheckpointError",
    "check_about",
    "check_config",
    "checkpoint_of",
    "client_state",
    "find_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]

FORMAT_VERSION = 1
_HOME = "mlecs_lightning"
"""Where the class of a bare name is looked up."""

# Options that do not change what a run computes.
_FREE = {
    *("config", "ckpt_path", "warmup", "data.init_args.root", "data.init_args.num_workers"),
    *("data.init_args.cache_dir", "data.init_args.allowed_roots"),
    *("trainer.max_rounds", "trainer.fast_dev_run", "trainer.warmup_ckpt_path"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.callbacks", "trainer.logger", "trainer.name", "trainer.default_root_dir"),
    *("trainer.enable_checkpointing", "trainer.enable_progress_bar", "trainer.store"),
    *("trainer.save_top_k", "trainer.monitor", "trainer.monitor_mode"),
    *("trainer.allow_other_config", "trainer.rouge", "trainer.bertscore"),
    *("trainer.check_val_every_n_rounds", "trainer.limit_val_batches"),
    *("trainer.limit_test_batches", "trainer.message_limits.max_bytes"),
    *("trainer.limit_eval_clients", "trainer.limit_test_clients"),
}


class CheckpointError(Exception):
    """A checkpoint is missing, unreadable, or does not fit; says which and why."""


def save_checkpoint(
    folder: Path, state: dict[str, Any], *, round: int, complete: bool = True
) -> Path:
    """Write the checkpoint of a round to a temporary file, sync it, and rename it.

    A run killed while writing leaves the previous checkpoint and at most a ``.tmp`` file, which is
    removed on resume.

    Args:
        folder: The run's ``checkpoints`` folder; made if missing.
        state: Only tensors, numbers, strings, lists and dicts, so a weights-only load can read it.
        round: Number of the current round.
        complete: Whether the round has ended. A complete checkpoint replaces partial ones.

    Returns:
        The file's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = Checkpoint.named(folder, round=round, complete=complete).path
    save_tensors(path, {"format_version": FORMAT_VERSION, "round": round, **state})
    for each in checkpoints(folder) if complete else ():
        if not each.complete:
            each.path.unlink()
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, weights only: nothing in the file is executed.

    Raises:
        CheckpointError: If the file is missing, damaged or of another format version. For a damaged
            file the message names the newest intact one beside it.
    """
    if not path.is_file():
        raise CheckpointError(f"ckpt_path: no file {str(path)!r}")
    try:
        state: dict[str, Any] = load_tensors(path)
    except DamagedFileError as error:
        raise damaged_checkpoint(path, error) from error
    version = state.get("format_version") if isinstance(state, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"ckpt_path: {str(path)!r} has format_version {version}, this version reads "
            f"{FORMAT_VERSION}"
        )
    return state


def client_state(saved: dict[str, Any] | str, checkpoint: Path) -> dict[str, Any]:
    """Return a client's state from a checkpoint, or from the file that the checkpoint names.

    Raises:
        CheckpointError: If the file is damaged or missing; names the newest intact checkpoint.
    """
    if isinstance(saved, dict):
        return saved
    try:
        state: dict[str, Any] = load_tensors(checkpoint.parent / "clients" / saved)
    except (OSError, DamagedFileError) as error:
        raise damaged_checkpoint(checkpoint, error) from error
    return state


def damaged_checkpoint(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a damaged checkpoint; it names an intact one of the same folder."""
    others = [each.path for each in checkpoints(path.parent) if each.path.name != path.name]
    sound = next((other for other in reversed(others) if _is_sound(other)), None)
    remedy = (
        "there is no sound one beside it: begin anew, without --ckpt_path"
        if sound is None
        else f"the newest sound one beside it is --ckpt_path {sound}"
    )
    return CheckpointError(f"ckpt_path: {error}\n  {remedy}")


def _is_sound(path: Path) -> bool:
    """Return whether a checkpoint and all client files that it names are readable."""
    try:
        clients = load_tensors(path).get("clients", {})
        for saved in clients.values():
            if isinstance(saved, str):
                check_tensors(path.parent / "clients" / saved)
    except (AttributeError, OSError, DamagedFileError):
        return False
    return True


def checkpoint_of(run: Path) -> Path:
    """Return the newest complete checkpoint of a run folder; a path to a file is returned as is.

    Raises:
        CheckpointError: If there is none.
    """
    if run.is_file():
        return run
    complete = [each for each in checkpoints(run / "checkpoints") if each.complete]
    if not complete:
        raise CheckpointError(
            f"{str(run)!r}: no checkpoint of a whole round in it; expected a run folder, such as "
            "runs/NAME/version_0, or a file round=....ckpt"
        )
    return complete[-1].path


def find_checkpoint(ckpt_path: str, *, run_root: Path, monitor: Monitor | None = None) -> Path:
    """Resolve ``last``, ``best`` or a file name.

    ``last`` is the newest checkpoint of the newest version that has any, complete or partial.
    ``best`` is the round of that version with the best monitored value, according to the history in
    its last checkpoint.

    Args:
        ckpt_path: ``last``, ``best`` or a path.
        run_root: The folder that holds the ``version_k`` folders.
        monitor: What ``best`` is asked to compare by; by default what the run has said.

    Raises:
        CheckpointError: If there is none, or ``best`` is asked for by another value than that of
            the run, whose best rounds alone have been kept.
    """
    if ckpt_path not in ("last", "best"):
        return expanded(ckpt_path, key="ckpt_path")
    for version in reversed(numbered_folders(run_root, "version")):
        found = checkpoints(version / "checkpoints")
        if not found:
            continue
        if ckpt_path == "last":
            return found[-1].path
        if complete := [each for each in found if each.complete]:
            return _best(complete, monitor)
        raise CheckpointError(  # an older version is another run
            f"ckpt_path: 'best', but no round of {str(version)!r} has ended: give last to "
            "go on with it, or a checkpoint file"
        )
    raise CheckpointError(
        f"ckpt_path: {ckpt_path!r}, but there is no checkpoint under {str(run_root)!r}"
    )


def _best(complete: list[Checkpoint], asked: Monitor | None) -> Path:
    newest = complete[-1].path
    state = load_checkpoint(newest)
    monitor = Monitor(state["monitor"], state.get("monitor_mode", "min"))
    if asked is not None and asked != monitor:
        raise CheckpointError(
            f"ckpt_path: 'best' of {str(newest.parent)!r} is by trainer.monitor {monitor.name} "
            f"(trainer.monitor_mode {monitor.mode}), by which its rounds were kept, and not by "
            f"{asked.name} ({asked.mode}): set both keys as they were, or give a checkpoint file"
        )
    files = {each.round: each.path for each in complete}
    for number in monitor.ranked(state["history"]):
        if number in files:
            return files[number]
    raise CheckpointError(
        f"ckpt_path: 'best', but no round of {newest.parent} has a {monitor.name!r}"
    )


def check_config(
    saved: Mapping[str, Any],
    present: Mapping[str, Any],
    *,
    same: Callable[[object, object], bool] = operator.eq,
) -> None:
    """Refuse to resume with a configuration that differs from that of the checkpoint.

    Options that do not change the results may differ, such as paths, devices, the number of rounds,
    and progress bars.

    Args:
        saved: The configuration in the checkpoint.
        present: The configuration of this run.
        same: Whether two values are equivalent.

    Raises:
        CheckpointError: If anything else differs; names every key with both values.
    """
    if not saved or not present:
        return  # a trainer that was used from Python without a configuration
    saved = _with_defaults(with_present_keys(saved), present)
    faults = [
        fault
        for key, fault in differences(saved, present, same=same).items()
        if not any(key == free or key.startswith(f"{free}.") for free in _FREE)
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


def _with_defaults(saved: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved configuration in which arguments that its version lacked have their defaults.

    Args:
        saved: The saved configuration, nested.
        present: That of this run, whose classes know the defaults.
    """
    filled = dict(saved)
    for key, value in present.items():
        if isinstance(value, Mapping) and isinstance(filled.get(key), Mapping):
            filled[key] = _with_defaults(filled[key], value)
    given, old = present.get("init_args"), filled.get("init_args")
    if isinstance(given, Mapping) and isinstance(old, Mapping):
        try:
            kind = import_class({"class_path": present["class_path"]}, home=_HOME, key="class_path")
        except (ConfigurationError, KeyError):
            return filled  # a class of the user's, under its bare name
        defaults = default_arguments(kind)
        unknown = (given.keys() & defaults.keys()) - old.keys()
        filled["init_args"] = {**old, **{name: defaults[name] for name in unknown}}
    return filled


def check_about(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuse to resume a run whose objects were set otherwise, where there is no configuration.

    Args:
        saved: What the run of the checkpoint said of itself, `Run.state_dict`.
        present: What this run says.

    Raises:
        CheckpointError: If anything differs that changes what is computed.
    """
    check_config(_as_config(saved), _as_config(present), same=alike)


def _as_config(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run says of itself, under the keys of a configuration."""
    models, arguments = about["models"], about.get("arguments", {})
    clients = {
        name: models["architectures"][int(number)] for name, number in models["clients"].items()
    }
    parts = {
        key: {"class_path": about[key], "init_args": arguments.get(key, {})}
        for key in ("algorithm", "data")
    }
    trainer = {**arguments.get("trainer", {}), "precision": about["precision"]}
    return {
        **parts,
        "trainer": trainer,
        "seed": about["seed"],
        "server": models["server"]["settings"],
        "clients": clients,
    }
