"""The frozen models of the parties: pocket models are made, all are loaded and checked."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from lightning.fabric import Fabric

from mlecs_lightning.clients.parties import Parties
from mlecs_lightning.clients.texts import check_texts, pocket_texts
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.modules.pocket import is_pocket, make_pocket
from mlecs_lightning.nn.loading import load_coder, load_frozen
from mlecs_lightning.nn.texts import TextCoder
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.settings import BackboneSettings, LoraSettings, ModelSettings

__all__ = ["check_inference", "check_lengths", "make_pockets", "with_backbone"]


def with_backbone(settings: ModelSettings, data: FederatedDataModule, *, key: str) -> ModelSettings:
    """Replace the name of a pocket model by its directory, after creating it if necessary.

    Args:
        settings: The settings of a party.
        data: Provides the texts on which a pocket model is trained.
        key: The YAML key of the settings.

    Raises:
        ConfigurationError: If the model cannot be loaded, or lacks a layer of ``target_modules``.
    """
    if is_pocket(settings.backbone.model):
        path = _pocket(settings.backbone.model, data)
        settings = replace(settings, backbone=replace(settings.backbone, model=str(path)))
    try:
        model, _ = load_frozen(settings.backbone)  # cached
    except ConfigurationError as error:
        raise ConfigurationError(f"{key}.{error}") from error
    layers = {n: m for n, m in model.named_modules() if getattr(m, "weight", None) is not None}
    wanted = settings.lora.target_modules or []
    unknown = [t for t in wanted if not any(f".{n}".endswith(f".{t}") for n in layers)]
    if unknown:
        flat = {n.rpartition(".")[2] for n, layer in layers.items() if layer.weight.ndim == 2}
        raise ConfigurationError(
            f"{key}.lora.target_modules: {unknown} are no layers of {settings.backbone.model!r}, "
            f"which has {sorted(flat)}"
        )
    return settings


def _pocket(model: str, data: FederatedDataModule) -> Path:
    return make_pocket(*pocket_texts(model, data))


def make_pockets(parties: Parties, data: FederatedDataModule, *, server: bool = True) -> None:
    """Create the pocket models of the parties that do not exist yet.

    Args:
        parties: The checked settings.
        data: Provides the texts on which they are trained.
        server: Whether the server's is needed, too.
    """
    settings = [*parties.hosts.values(), *parties.models.values()]
    settings += [parties.server] if server else []
    for model in sorted({each.backbone.model for each in settings}):
        if is_pocket(model):
            _pocket(model, data)


def check_lengths(
    parties: Parties,
    data: FederatedDataModule,
    algorithm: Algorithm | None = None,
    *,
    server: bool = True,
    clients: bool = True,
) -> None:
    """Check the texts of all parties against the models that read them; see `check_texts`.

    Raises:
        ConfigurationError: If a model cannot be loaded, or a text is too long for one.
    """

    @cache
    def resolved(backbone: BackboneSettings, key: str) -> TextCoder:
        settings = replace(parties.server, backbone=backbone, lora=LoraSettings())
        return load_coder(with_backbone(settings, data, key=key).backbone)

    check_texts(
        parties,
        data,
        lambda settings, key: resolved(settings.backbone, key),
        algorithm=algorithm,
        server=server,
        clients=clients,
    )


def check_inference(settings: ModelSettings, fabric: Fabric, *, key: str) -> None:
    """Check that int8 inference is possible on this device and with this precision.

    Raises:
        ConfigurationError: If not; says what is.
    """
    precision = fabric.strategy.precision.precision
    if settings.inference == "int8" and (fabric.device.type != "cpu" or precision != "32-true"):
        raise ConfigurationError(
            f"{key}.inference: int8 needs trainer.accelerator: cpu and trainer.precision: 32-true, "
            f"got {fabric.device.type} and {precision}; on a GPU take backbone.quantization: 4bit "
            "or 8bit"
        )
