"""The folder that a trained model is exported to.

======================================== ===========================================================
file                                     what it holds
======================================== ===========================================================
``adapter_config.json``,                 the adapter, as PEFT writes it
``adapter_model.safetensors``
``mlecs_model.safetensors``              extractors, connector and readout, under ``extractors.``,
                                         ``connector.`` and ``readout.``; frozen encoders are named
                                         in the configuration, not stored
``mlecs_config.json``                    settings, modalities and their scales, versions, and what
                                         the model was trained with
``backbone/``                            the frozen language model, where it cannot be fetched
``README.md``                            the model card
``SHA256SUMS``                           digests of all files but the card
======================================== ===========================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from mlecs_lightning.data.decoding.preparation import Preparation
from mlecs_lightning.deploy.adapter import write_adapter
from mlecs_lightning.deploy.card import model_card
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.modules import MultimodalLM
from mlecs_lightning.modules.pocket import pocket_of
from mlecs_lightning.nn.frozen import PRIVATE
from mlecs_lightning.nn.loading import load_frozen
from mlecs_lightning.storage.digests import seal_folder
from mlecs_lightning.storage.files import replacing_folder

__all__ = [
    "BACKBONE",
    "CONFIG",
    "FORMAT_VERSION",
    "WEIGHTS",
    "Provenance",
    "frozen_contents",
    "write_export",
]

FORMAT_VERSION = 1
CONFIG, WEIGHTS, BACKBONE = "mlecs_config.json", "mlecs_model.safetensors", "backbone"
_LIBRARIES = ("torch", "transformers", "peft", "safetensors")


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from, for its card.

    Attributes:
        client: The client's name, or ``server``.
        algorithm: The method.
        rounds: Rounds that it was trained for.
        seed: Base seed of the run.
        data: The data set.
        clients: Number of clients in the federation.
        scores: For each test (``own``, ``all``) the scores; empty where they are not known.
        constant: The same of the best constant sentence; for a client the mean over all clients.
        options: Arguments of the method, as the configuration has them.
    """

    client: str
    algorithm: str
    rounds: int
    seed: int
    data: str
    clients: int
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    constant: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def write_export(
    module: MultimodalLM,
    out: Path,
    *,
    preparations: Mapping[str, Preparation],
    precision: str,
    instruction: str | None,
    provenance: Provenance,
    include_backbone: bool | None = None,
) -> Path:
    """Write the answering tower of a model, with all that it takes to ask it again.

    Args:
        module: The model.
        out: The folder; made here.
        preparations: How inputs were prepared in its training.
        precision: The arithmetic of its training, as in Fabric.
        instruction: What it was asked, if it was always the same.
        provenance: For the model card.
        include_backbone: Whether the frozen language model is stored, too; by default only a
            pocket model, which no hub has.

    Returns:
        ``out``.

    Raises:
        ConfigurationError: If the folder exists and is not empty.
        FullDiskError: If there is no room for it; nothing is left then.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(f"{str(out)!r} exists; name a new folder to export to")
    backbone = module.tower().backbone
    asked = backbone.settings
    pocket = pocket_of(asked.model)
    included = pocket is not None if include_backbone is None else include_backbone
    if included:
        named = {"source": "included", "pocket": pocket}
        settings = replace(asked, model=BACKBONE, revision=None, local_files_only=True)
    else:
        named = {"source": "directory" if Path(asked.model).is_dir() else "hub"}
        settings = asked
    commit = getattr(load_frozen(asked)[0].config, "_commit_hash", None)
    config = {
        "format_version": FORMAT_VERSION,
        "versions": {name: version(name) for name in ("mlecs_lightning", *_LIBRARIES)},
        "backbone": {"model": settings.model, "revision": settings.revision}
        | named
        | ({"commit": commit} if commit else {}),
        "settings": replace(module.settings, backbone=settings).to_dict(),
        "modalities": {name: preparations[name].to_dict() for name in module.modalities},
        "instruction": instruction,
        "frozen": frozen_contents(module),
        "precision": precision,
        "training": asdict(provenance),
    }
    with replacing_folder(out) as staging:
        base = BACKBONE if included else None
        write_adapter(module, staging, base=base, adapters=["default"])
        save_file(_own_tensors(module), staging / WEIGHTS, metadata={"format": "pt"})
        (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if included:
            for part in load_frozen(asked):
                part.save_pretrained(staging / BACKBONE)
        (staging / "README.md").write_text(model_card(config), encoding="utf-8")
        seal_folder(staging)
    return out


def frozen_contents(module: MultimodalLM) -> dict[str, dict[str, str]]:
    """Return name and digests of the frozen parts that an export needs, without their tower."""
    tower = f"towers.{module.first}."
    return {
        part.removeprefix(tower): content
        for part, content in module.frozen_contents().items()
        if part.startswith((tower, "extractors."))
    }


def _own_tensors(module: MultimodalLM) -> dict[str, Tensor]:
    """Return all that trains beside that adapter; a tower's tensors without its name."""
    tower = f"towers.{module.first}."
    state = {
        name.removeprefix(tower): tensor.cpu().contiguous()
        for name, tensor in module.trainable_state().items()
        if name.startswith((tower, "extractors."))
    }
    return {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith("backbone.") or f".{PRIVATE}." in name
    }
