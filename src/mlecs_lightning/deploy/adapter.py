"""An adapter in PEFT's format, without a word of the machine that it was written on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlecs_lightning.modules import MultimodalLM
from mlecs_lightning.modules.pocket import pocket_of

__all__ = ["backbone_name", "write_adapter"]


def backbone_name(model: str) -> str:
    """Return what a backbone is called anywhere: its hub id, ``pocket/slm``, a folder's own name.

    Args:
        model: What it is loaded by here, maybe a directory of this machine.
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

    PEFT would write the directory that the backbone was loaded from, which tells of this machine
    and is nowhere else, and a card of which all is left to be filled in.

    Args:
        module: The model.
        folder: Where; made if missing. Adapters beside the first one get a folder in it.
        base: Name of the backbone for whoever reads it; `backbone_name` by default.
        adapters: Which of the adapters; all by default.
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
        lm.save_pretrained(
            str(folder),
            save_embedding_layers=False,
            selected_adapters=None if adapters is None else list(adapters),
        )
    finally:
        for config, old in zip(configs, before, strict=True):
            config.base_model_name_or_path, config.revision = old
    (folder / "README.md").unlink(missing_ok=True)
