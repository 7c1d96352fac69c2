"""The folder that a trained model is exported to.

======================================== ===========================================================
file                                     contents
======================================== ===========================================================
``adapter_config.json``,                 the adapter, as PEFT writes it
``adapter_model.safetensors``
``mlecs_model.safetensors``              extractors, connector and readout, under ``extractors.``,
                                         ``connector.`` and ``readout.``; without frozen encoders,
                                         which the configuration names
``mlecs_config.json``                    settings, modalities and their scales, versions, and how
                                         the model was trained
``backbone/``                            the frozen language model, if it is included
``README.md``                            the model card
``SHA256SUMS``                           digests of all files except the card
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
from mlecs_lightning.settings import BackboneSettings
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
    """How a model was trained, for its card.

    Attributes:
        client: Name of the client, or ``server``.
        algorithm: Name of the method.
        rounds: Number of training rounds.
        seed: Base seed of the run.
        data: Name of the data set.
        clients: Number of clients in the federation.
        scores: The scores on each test set (``own``, ``all``); empty if unknown.
        constant: The same for the best constant sentence; for a client, the mean over all clients.
        options: Arguments of the method in the configuration.
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
    """Write the answering tower of a model, with everything needed to use it.

    Args:
        module: The model.
        out: The folder to create.
        preparations: How the inputs were prepared in training.
        precision: The precision of training, as in Fabric.
        instruction: The instruction of all training samples; ``None`` if they differ.
        provenance: How the model was trained.
        include_backbone: Whether to store the frozen language model; by default only a pocket
            model, which is on no hub.

    Returns:
        ``out``.

    Raises:
        ConfigurationError: If the folder exists and is not empty.
        FullDiskError: If the disk is full; no partial folder is left.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(f"{str(out)!r} exists; name a new folder to export to")
    original = module.tower().backbone.settings
    included = pocket_of(original.model) is not None
    if include_backbone is not None:
        included = include_backbone
    settings = original
    if included:
        settings = replace(original, model=BACKBONE, revision=None, local_files_only=True)
    config = {
        "format_version": FORMAT_VERSION,
        "versions": {name: version(name) for name in ("mlecs_lightning", *_LIBRARIES)},
        "backbone": {"model": settings.model, "revision": settings.revision}
        | _backbone_source(original, included=included),
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
            for part in load_frozen(original):
                part.save_pretrained(staging / BACKBONE)
        (staging / "README.md").write_text(model_card(config), encoding="utf-8")
        seal_folder(staging)
    return out


def _backbone_source(settings: BackboneSettings, *, included: bool) -> dict[str, Any]:
    """Return where to find the backbone: in the folder, a directory or the hub."""
    if included:
        entry: dict[str, Any] = {"source": "included", "pocket": pocket_of(settings.model)}
    else:
        entry = {"source": "directory" if Path(settings.model).is_dir() else "hub"}
    commit = getattr(load_frozen(settings)[0].config, "_commit_hash", None)
    return {**entry, "commit": commit} if commit else entry


def frozen_contents(module: MultimodalLM) -> dict[str, dict[str, str]]:
    """Return name and digests of the exported frozen parts, without the tower in their names."""
    tower = f"towers.{module.first}."
    return {
        part.removeprefix(tower): content
        for part, content in module.frozen_contents().items()
        if part.startswith((tower, "extractors."))
    }


def _own_tensors(module: MultimodalLM) -> dict[str, Tensor]:
    """Return the exported trainable tensors that are not in the adapter's own file.

    Tensors of the tower are without its name. The private adapter is among them.
    """
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
