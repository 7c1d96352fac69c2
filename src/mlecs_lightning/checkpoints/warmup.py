"""Loading a warm-up checkpoint into the server of a federation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from mlecs_lightning.checkpoints.checkpoint import CheckpointError
from mlecs_lightning.checkpoints.frozen import check_saved
from mlecs_lightning.differences import alike
from mlecs_lightning.modules import ServerModule
from mlecs_lightning.rounds.optimization import why_anew
from mlecs_lightning.storage.files import DamagedFileError, load_tensors

__all__ = ["load_warmup", "read_warmup", "saved_moments"]

log = logging.getLogger(__name__)

# The weights depend on these settings; others may differ.
_MEANING = {
    "backbone": ("model", "revision"),
    "lora": ("r", "alpha", "target_modules"),
    "connector": ("width", "prompt_length"),
}


def load_warmup(path: Path, server: ServerModule, optimizer: Optimizer | None = None) -> None:
    """Load a warm-up checkpoint into the server.

    Args:
        path: The checkpoint.
        server: The server of the federation, after `Algorithm.prepare`.
        optimizer: Its optimiser. It takes over moments and step count if it is of the same class as
            in the warm-up, so that `fit` continues as after a warm-up of its own. Its learning rate
            and other options stay.

    Raises:
        CheckpointError: If the file is missing, not a warm-up checkpoint, or from a different
            server; says what differs. The server is then unchanged.
    """
    key = "trainer.warmup_ckpt_path"
    saved = read_warmup(path, server, key=key)
    try:
        server.load_trainable_state(saved["state_dict"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{key}: {str(path)!r} is of another server: {error}") from error
    if optimizer and (moments := saved_moments(saved, server)):
        _load_moments(moments, server, optimizer)


def saved_moments(saved: Mapping[str, Any], server: ServerModule) -> Mapping[int, Any]:
    """Return the moments of a checkpoint if the server's optimiser can use them.

    If it cannot, the reason is logged.
    """
    states = saved.get("optimizer_states")
    if not states:
        return {}
    moments: Mapping[int, Any] = states[0]["state"]
    old, new = saved["hyper_parameters"]["settings"]["optimizer"], server.settings.optimizer
    if anew := why_anew(moments, old, new, server.trainable_parameters()):
        log.warning("warm-up: server: %s", anew)
        return {}
    return moments


def read_warmup(path: Path, server: ServerModule, *, key: str) -> dict[str, Any]:
    """Read a warm-up checkpoint, weights only.

    Args:
        path: The checkpoint.
        server: The server into which it will be loaded.
        key: The YAML key of the path, for error messages.

    Returns:
        The checkpoint, as Lightning wrote it.

    Raises:
        CheckpointError: If the file is missing, not a warm-up checkpoint, or the settings or frozen
            models of its server differ; says which.
    """
    name = f"{key}: {str(path)!r}"
    if not path.is_file():
        raise CheckpointError(f"{name}: there is no such file")
    try:
        saved: dict[str, Any] = load_tensors(path)
    except DamagedFileError as error:
        raise CheckpointError(f"{key}: {error}") from error
    settings = saved.get("hyper_parameters", {}) if isinstance(saved, dict) else {}
    if not {"settings", "hosted", "modalities"} <= settings.keys() or "state_dict" not in saved:
        raise CheckpointError(f"{name}: this is no checkpoint that `warmup` wrote")
    if differences := _differences(settings, dict(server.hparams)):
        raise CheckpointError("\n  ".join([f"{name} is of another server:", *differences]))
    check_saved(saved, server.frozen_contents(), path=path, key=key)
    return saved


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return the differences, one line for each key."""
    values = [
        (f"{party}.{part}.{name}", there[which][part][name], here[which][part][name])
        for which, party, parts in (
            ("settings", "server", _MEANING.keys()),
            ("hosted", "clients", ("backbone", "lora")),  # the rest is the server's
        )
        for part in parts
        for name in _MEANING[part]
    ]
    values += [
        ("server.extractors", there["settings"]["extractors"], here["settings"]["extractors"]),
        ("modalities", there["modalities"], here["modalities"]),
    ]
    return [f"{key} is {a!r} there and {b!r} here" for key, a, b in values if not _alike(a, b)]


def _alike(one: object, other: object) -> bool:
    # None leaves the choice to a library; names and shapes of the tensors are checked later.
    return one is None or other is None or alike(one, other)


def _load_moments(state: Mapping[int, Any], server: ServerModule, optimizer: Optimizer) -> None:
    """Load the moments of the trainable parameters into the server's optimiser.

    That optimiser may also hold parameters that an algorithm has frozen since.
    """
    own = optimizer.state_dict()
    position = {
        id(parameter): n
        for n, parameter in enumerate(
            p for group in optimizer.param_groups for p in group["params"]
        )
    }
    names = server.trainable_parameters()
    moments = {position[id(names[n])]: values for n, values in state.items()}
    optimizer.load_state_dict({"state": moments, "param_groups": own["param_groups"]})
