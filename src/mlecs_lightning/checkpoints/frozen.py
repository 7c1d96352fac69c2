"""Checks that frozen models are equal on all ranks and equal to those of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from mlecs_lightning.checkpoints.checkpoint import CheckpointError
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.modules.contents import REMEDY, Contents, content_faults

__all__ = ["check_ranks", "check_saved"]


def check_ranks(contents: Sequence[Contents]) -> None:
    """Refuse ranks whose frozen models differ from those of rank 0.

    Args:
        contents: The frozen parts of every rank, known to all, so either all ranks stop or none.

    Raises:
        ConfigurationError: If a digest differs; it names rank, backbone and both digests.
    """
    faults = [
        fault
        for rank, own in enumerate(contents)
        for fault in content_faults(contents[0], own, names=("on rank 0", f"on rank {rank}"))
    ]
    if faults:
        raise ConfigurationError(
            "\n  ".join(["the ranks have loaded other frozen models:", *faults, REMEDY])
        )


def check_saved(
    saved: Mapping[str, Any] | None,
    here: Contents,
    *,
    path: Path,
    key: str = "ckpt_path",
    any: bool = False,
) -> None:
    """Refuse a checkpoint that was trained with different frozen models.

    Args:
        saved: A mapping with the frozen parts under ``frozen``; earlier versions have none.
        here: The frozen parts of the present models.
        path: The checkpoint.
        key: The YAML key of the path, for messages.
        any: Only report a difference, and continue.

    Raises:
        CheckpointError: If a digest differs; names backbone and both digests.
    """
    if saved is None or "frozen" not in saved:
        rank_zero_info(
            f"{key}: {str(path)!r} is of an earlier version and has no digests: whether its "
            "frozen models are those of today is not known"
        )
        return
    faults = content_faults(saved["frozen"], here, names=("in the checkpoint", "here"))
    message = "\n  ".join(
        [f"{key}: {str(path)!r} was trained with other frozen models:", *faults, REMEDY]
    )
    if faults and not any:
        raise CheckpointError(message)
    if faults:
        rank_zero_info(message)
