"""Writes an adapter in PEFT's format, without paths of this machine."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from mlecs_lightning.modules import MultimodalLM
from mlecs_lightning.modules.pocket import pocket_of

__all__ = ["backbone_name", "write_adapter"]


def backbone_name(model: str) -> str:
    """Return a name of a backbone that is valid on any machine.

    Args:
        model: Hub id, or a directory on this machine.

    Returns:
        The hub id, the name of a pocket model (``pocket/slm``), or the last part of the directory.
    """
    path = Path(model)
    return pocket_of(model) or (path.name if path.is_dir() or path.is_absolute() else model)


def write_adapter(
    module: MultimodalLM,
    folder: Path,
    *,
    base: str | None = None,
    adapters: Sequence[str] | None = None,
) -> None:
    """Write the adapter of the tower that answers.

    PEFT would also write the directory that the backbone was loaded from, which exists only on this
    machine, and an empty model card.

    Args:
        module: The model.
        folder: The folder, created if missing. Further adapters get subfolders.
        base: Name of the backbone in the configuration; `backbone_name` by default.
        adapters: Names of the adapters to write; all by default.
    """
    backbone = module.tower().backbone
    settings, lm = backbone.settings, backbone.lm
    configs = list(lm.peft_config.values())
    before = [(config.base_model_name_or_path, config.revision) for config in configs]
    named = base or backbone_name(settings.model)
    for config in configs:
        config.base_model_name_or_path = named
        config.revision = settings.revision if named == settings.model else None
    try:
        with warnings.catch_warnings():
            # A sub-model of ECLM may have no module in a layer; PEFT takes that for a lost shard.
            warnings.filterwarnings("ignore", message=".*have invalid shape")
            lm.save_pretrained(
                str(folder),
                save_embedding_layers=False,
                selected_adapters=None if adapters is None else list(adapters),
            )
    finally:
        for config, old in zip(configs, before, strict=True):
            config.base_model_name_or_path, config.revision = old
    (folder / "README.md").unlink(missing_ok=True)
