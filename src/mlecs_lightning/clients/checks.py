"""Checks of the settings of all parties, before a model is built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mlecs_lightning.class_paths import ClassPath, build_class, check_call
from mlecs_lightning.clients.groups import group_clients
from mlecs_lightning.clients.settings import ClientSettings, DrawnClients, named_clients, profiles
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.errors import ConfigurationError, FaultList
from mlecs_lightning.modules.pocket import POCKETS, is_pocket
from mlecs_lightning.names import client_name_faults
from mlecs_lightning.nn import extractors as extractor_classes
from mlecs_lightning.nn.words import limits_of
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.settings import ModelSettings

__all__ = ["configuration_faults"]

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def configuration_faults(
    given: dict[str, ClientSettings] | DrawnClients,
    common: Mapping[str, ModelSettings],
    *,
    algorithm: Algorithm | None,
    data: FederatedDataModule | None,
) -> FaultList:
    """Return everything that does not fit together, and attach the clients to the data.

    Checks that involve a missing part are skipped, since its own fault is reported elsewhere.

    Args:
        given: The clients by name, or how to draw them.
        common: Settings of the ``server`` and of the ``edge``.
        algorithm: The method.
        data: The data.

    Returns:
        All faults, each with its key.
    """
    faults = FaultList()
    modalities = list(data.modalities) if data else ["any"]
    clients = faults.attempt(named_clients, given, modalities) or {}
    faults += client_name_faults(clients)
    models: dict[str, ModelSettings] = {}
    if edge := common.get("edge"):
        for name, client in clients.items():
            model = faults.attempt(client.model, edge, key=f"clients.{name}")
            models |= {name: model} if model else {}
    faults += _unlike(models, common)
    faults += _backbone_faults(models, common)
    faults += _optimizer_faults(clients, models, common)
    if data:
        faults += _extractor_faults(clients, models, common, data)
        faults += _word_faults(algorithm, data)
        if models and algorithm:
            said: dict[str, None] = {}
            groups = group_clients(models, one=algorithm.uses_proxy)
            if algorithm.one_model and len(groups) > 1:
                first, other, *_ = (members[0] for members in groups.values())
                faults.append(
                    f"clients.{other}: backbone.model, backbone.revision and lora.target_modules "
                    f"must be those of clients.{first}: under {type(algorithm).__name__} all "
                    "devices run one model, or parts of it"
                )
                groups = {"slm": tuple(models)}
            for members in groups.values():
                loras = {name: models[name].lora for name in members}
                said |= dict.fromkeys(algorithm.faults(loras, batch_size=data.batch_size))
            faults += said
        try:
            if clients:
                data.attach(profiles(clients))
        except (ValueError, OSError, ImportError) as error:
            faults.append(str(error))
    return faults


def _unlike(models: Mapping[str, ModelSettings], common: Mapping[str, ModelSettings]) -> list[str]:
    """Return the clients that cannot be in one federation with the others."""
    faults = []
    server = common.get("server")
    if server and server.lora.private_r:
        faults.append(
            f"server.lora.private_r is {server.lora.private_r}; an adapter that never leaves the "
            "device is for clients only: 0 here"
        )
    for name, model in models.items():
        if server and model.connector.width != server.connector.width:
            faults.append(
                f"clients.{name}: connector.width is {model.connector.width}, the server's is "
                f"{server.connector.width}; all parties share one latent space"
            )
    return faults


def _backbone_faults(
    models: Mapping[str, ModelSettings], common: Mapping[str, ModelSettings]
) -> list[str]:
    """Return backbone names that are neither a pocket model, a directory nor a hub id."""
    faults = FaultList()
    named = {party: settings.backbone.model for party, settings in common.items()}
    for name, settings in models.items():
        if settings.backbone.model not in named.values():
            named[f"clients.{name}"] = settings.backbone.model
    for party, model in named.items():
        try:
            if not (is_pocket(model) or Path(model).is_dir() or _HUB_ID.fullmatch(model)):
                faults.append(
                    f"{party}.backbone.model: there is no directory {model!r}, and a hub id is "
                    f"'name' or 'owner/name'; made on this machine: {sorted(POCKETS)}"
                )
        except ValueError as error:
            faults.append(f"{party}.{error}")
    return faults


def _optimizer_faults(
    clients: Mapping[str, ClientSettings],
    models: Mapping[str, ModelSettings],
    common: Mapping[str, ModelSettings],
) -> list[str]:
    """Return the optimisers and schedulers that cannot be built."""
    faults = FaultList()
    own = {
        f"clients.{name}": m
        for name, m in models.items()
        if clients[name].optimizer or clients[name].lr_scheduler
    }
    for party, settings in {**common, **own}.items():
        faults.attempt(_try_optimizer, settings.optimizer, key=f"{party}.optimizer")
        if settings.lr_scheduler:
            faults.attempt(_try_scheduler, settings.lr_scheduler, key=f"{party}.lr_scheduler")
    return faults


def _extractor_faults(
    clients: Mapping[str, ClientSettings],
    models: Mapping[str, ModelSettings],
    common: Mapping[str, ModelSettings],
    data: FederatedDataModule,
) -> list[str]:
    """Return the extractors that cannot be built or name no modality, such as a typing error."""
    faults = FaultList()
    given: dict[str, Mapping[str, ClassPath]] = {
        **{party: settings.extractors for party, settings in common.items()},
        **{f"clients.{name}": clients[name].extractors or {} for name in models},
    }
    for party, extractors in given.items():
        for modality, setting in extractors.items():
            spec = data.modalities.get(modality)
            if spec is not None and spec.tokens:
                faults.append(
                    f"{party}.extractors.{modality}: the language model reads this modality as "
                    "tokens, without an extractor: leave it out, or declare it with as: vector"
                )
            elif spec is not None:
                faults.attempt(
                    check_call,
                    setting,
                    home=extractor_classes.__name__,
                    key=f"{party}.extractors.{modality}",
                    offered={"spec": spec},
                )
            else:
                faults.append(
                    f"{party}.extractors: {modality!r} is none of {list(data.modalities)}"
                )
    return faults


def _word_faults(algorithm: Algorithm | None, data: FederatedDataModule) -> list[str]:
    """Return the text modalities as tokens, if the algorithm has no place for them."""
    words = list(limits_of(data.modalities))
    if algorithm is None or algorithm.reads_words or not words:
        return []
    return [
        f"data.init_args.modalities: {words} are declared with as: tokens, but "
        f"{type(algorithm).__name__} exchanges the outputs of extractors, and such a modality has "
        "none: declare them with as: vector"
    ]


def _try_optimizer(setting: ClassPath, *, key: str) -> None:
    """Build an optimiser over one parameter, since only its class knows its arguments.

    Raises:
        ConfigurationError: If that fails, or the class is not an optimiser.
    """
    home = "torch.optim"
    parameter = torch.nn.Parameter(torch.zeros(1, 1))
    check_call(setting, [parameter], home=home, key=key)
    if not isinstance(build_class(setting, [parameter], home=home, key=key), Optimizer):
        raise ConfigurationError(f"{key}.class_path: {setting['class_path']!r} is no optimiser")


def _try_scheduler(setting: ClassPath, *, key: str) -> None:
    """Build a scheduler over an optimiser of one parameter.

    Raises:
        ConfigurationError: If that fails, or the class is not a scheduler that steps by rounds
            alone.
    """
    home = "torch.optim.lr_scheduler"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    check_call(setting, optimizer, home=home, key=key)
    built = build_class(setting, optimizer, home=home, key=key)
    if not isinstance(built, LRScheduler) or isinstance(built, ReduceLROnPlateau):
        raise ConfigurationError(
            f"{key}.class_path: {setting['class_path']!r} is no scheduler that goes by rounds "
            "alone, such as CosineAnnealingLR, LinearLR, ExponentialLR or StepLR"
        )
