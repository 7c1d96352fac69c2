"""What the YAML says of the parties, and all that can be wrong with it before models are built."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.data.availability import draw_client_modalities
from mlecs_lightning.federated.algorithm import Algorithm
from mlecs_lightning.federated.groups import group_clients
from mlecs_lightning.modules.pocket import POCKETS, is_pocket
from mlecs_lightning.nn import extractors as extractor_classes
from mlecs_lightning.settings import (
    ClassPath,
    ConfigurationError,
    FaultList,
    ModelSettings,
    build_class,
    check_call,
    override,
    value_faults,
)
from mlecs_lightning.types import ClientProfile

__all__ = [
    "ClientSettings",
    "DrawnClients",
    "FederationSettings",
    "Parties",
    "are_drawn",
    "client_settings",
    "party_faults",
]

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class ClientSettings:
    """One client.

    Attributes:
        modalities: The modalities that its sensors deliver.
        domains: The domains whose private samples it holds; dealt out if not given.
        backbone: Values that differ from ``edge.backbone``.
        lora: Values that differ from ``edge.lora``.
        connector: Values that differ from ``edge.connector``.
        extractors: For each modality a class that differs from ``edge.extractors``.
        optimizer: Values that differ from ``edge.optimizer``.
        lr_scheduler: The client's own in place of ``edge.lr_scheduler``.
    """

    modalities: list[str]
    domains: list[str] | None = None
    backbone: dict[str, Any] | None = None
    lora: dict[str, Any] | None = None
    connector: dict[str, Any] | None = None
    extractors: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None
    lr_scheduler: dict[str, Any] | None = None

    def model(self, edge: ModelSettings, *, key: str) -> ModelSettings:
        """Return the edge's settings with this client's own values."""
        own = {
            name: value
            for name in ("backbone", "lora", "connector", "extractors", "optimizer", "lr_scheduler")
            if (value := getattr(self, name)) is not None
        }
        return override(edge, own, key=key)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class DrawnClients:
    """Clients whose modalities are drawn.

    Attributes:
        count: Number of clients.
        modality_rate: Probability that a client has a modality; 0.7 in the reference configuration.
        seed: Seed of the draw.
    """

    count: int
    modality_rate: float = 0.7
    seed: int = 0


def are_drawn(clients: Mapping[str, Any]) -> bool:
    """Return whether the YAML says how clients are drawn, and does not name them."""
    if not clients or any(isinstance(client, Mapping) for client in clients.values()):
        return False
    numbers = all(isinstance(value, int | float) for value in clients.values())
    return numbers or any(key.name in clients for key in fields(DrawnClients))


def client_settings(
    clients: Mapping[str, Any], modalities: list[str]
) -> tuple[dict[str, ClientSettings] | DrawnClients, list[str]]:
    """Check names and types of all values, and build the settings of the clients.

    Args:
        clients: What the YAML says: clients by name, or how they are drawn.
        modalities: What stands in for the modalities of a client that has none that are sound.

    Returns:
        The settings, and the faults. With faults the settings hold what is sound, so that it can be
        checked further.
    """
    if are_drawn(clients):
        sound, faults = _sound(DrawnClients, clients, key="clients")
        return DrawnClients(**{"count": 1, **sound}), faults
    named: dict[str, ClientSettings] = {}
    faults = []
    for name, values in clients.items():
        sound, found = _sound(ClientSettings, values, key=f"clients.{name}")
        named[name] = ClientSettings(**{"modalities": modalities, **sound})
        faults += found
    return named, faults


def _sound(kind: type, values: object, *, key: str) -> tuple[dict[str, Any], list[str]]:
    """Return the values that a dataclass takes, and what is wrong with the others."""
    known = [each.name for each in fields(kind)]
    if not isinstance(values, Mapping):
        return {}, [f"{key}: expected keys and their values, got {values!r}; known: {known}"]
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.name not in values]
    faults = [f"{key}: {name} is missing; known: {known}" for name in needed]
    sound = {n: v for n, v in values.items() if not value_faults(kind, {n: v}, key=key)}
    return sound, faults + value_faults(kind, values, key=key)


@dataclass(frozen=True)
class FederationSettings:
    """All that is said of the parties.

    Attributes:
        server: The cloud LLM.
        edge: What every client has unless it says otherwise.
        clients: The clients by name, or how they are drawn.
        seed: Base seed of the run.
    """

    server: ModelSettings = field(default_factory=ModelSettings)
    edge: ModelSettings = field(default_factory=ModelSettings)
    clients: dict[str, ClientSettings] | DrawnClients = field(default_factory=dict)
    seed: int = 0

    def named_clients(self, modalities: Iterable[str]) -> dict[str, ClientSettings]:
        """Return the clients by name; see the function `named_clients`."""
        return named_clients(self.clients, modalities)


@dataclass(frozen=True)
class Parties:
    """The settings of every party, checked and complete; the ground on which modules are built.

    Attributes:
        server: Settings of the server's LLM.
        groups: For each SLM that the server hosts the clients whose adapters it carries.
        hosts: For each of them its settings.
        profiles: For each client what the data layer knows of it.
        models: For each client its settings.
        seed: Base seed of the run.
        uses_proxy: Whether clients have a proxy, with the hosted backbone and adapter.
    """

    server: ModelSettings
    groups: dict[str, tuple[str, ...]]
    hosts: dict[str, ModelSettings]
    profiles: dict[str, ClientProfile]
    models: dict[str, ModelSettings]
    seed: int
    uses_proxy: bool = False

    @property
    def hosted(self) -> ModelSettings:
        """Settings of the first hosted SLM: the only one, where all clients are of one group."""
        return next(iter(self.hosts.values()))

    @classmethod
    def resolve(
        cls, settings: FederationSettings, algorithm: Algorithm, data: FederatedDataModule
    ) -> Parties:
        """Check everything that can be known before a model is built, and deal out the data.

        Args:
            settings: What the user wrote.
            algorithm: Says what it cannot work with.
            data: Gets the clients attached.

        Raises:
            ConfigurationError: If anything does not fit; all faults in one message, each with its
                key.
        """
        common = {"server": settings.server, "edge": settings.edge}
        faults = party_faults(settings.clients, common, algorithm=algorithm, data=data)
        faults.raise_any(title="the configuration has faults:")
        clients = settings.named_clients(data.modalities)
        models = {
            name: client.model(settings.edge, key=f"clients.{name}")
            for name, client in clients.items()
        }
        groups = group_clients(models, one=algorithm.uses_proxy)
        hosts = {}
        for host, members in groups.items():
            lora = algorithm.hosted_lora({name: models[name].lora for name in members})
            own = settings.edge if algorithm.uses_proxy else models[members[0]]
            hosts[host] = replace(settings.server, backbone=own.backbone, lora=lora)
        profiles = _profiles(clients)
        proxy = algorithm.uses_proxy
        return cls(settings.server, groups, hosts, profiles, models, settings.seed, proxy)


def party_faults(
    given: dict[str, ClientSettings] | DrawnClients,
    common: Mapping[str, ModelSettings],
    *,
    algorithm: Algorithm | None,
    data: FederatedDataModule | None,
) -> FaultList:
    """Say what does not fit together; deal the data to the clients on the way.

    A part that is missing has faults of its own: nothing is said of how the others fit it.

    Args:
        given: The clients by name, or how they are drawn.
        common: Settings of the ``server`` and of the ``edge``.
        algorithm: The method.
        data: The data.

    Returns:
        All faults, each with its key.
    """
    faults = FaultList()
    modalities = list(data.modalities) if data else ["any"]
    clients = faults.attempt(named_clients, given, modalities) or {}
    # Names become folders and parts of metric names, beside those of the server.
    faults += [
        f"clients: the name {name!r} is taken or no name; one begins with a letter, a digit or "
        "'_' and goes on with these, '.', '-' and spaces"
        for name in clients
        if name == "server" or not re.fullmatch(r"\w[\w. -]*", name)
    ]
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
        if models and algorithm:
            said: dict[str, None] = {}
            for members in group_clients(models, one=algorithm.uses_proxy).values():
                loras = {name: models[name].lora for name in members}
                said |= dict.fromkeys(algorithm.faults(loras, batch_size=data.batch_size))
            faults += said
        try:
            if clients:
                data.attach(_profiles(clients))
        except (ValueError, OSError, ImportError) as error:
            faults.append(str(error))
    return faults


def named_clients(
    given: dict[str, ClientSettings] | DrawnClients, modalities: Iterable[str]
) -> dict[str, ClientSettings]:
    """Return the clients by name, drawing them if need be.

    Raises:
        ValueError: If there are none, or their numbers are out of range.
    """
    if isinstance(given, DrawnClients):
        drawn = draw_client_modalities(
            list(modalities), given.count, rate=given.modality_rate, seed=given.seed
        )
        return {name: ClientSettings(list(has)) for name, has in drawn.items()}
    if not given:
        raise ValueError("clients: name at least one, or give count and modality_rate")
    return given


def _profiles(clients: Mapping[str, ClientSettings]) -> dict[str, ClientProfile]:
    return {
        name: ClientProfile(tuple(c.modalities), None if c.domains is None else tuple(c.domains))
        for name, c in clients.items()
    }


def _unlike(models: Mapping[str, ModelSettings], common: Mapping[str, ModelSettings]) -> list[str]:
    """Say which clients cannot be in one federation with the others."""
    faults = []
    server = common.get("server")
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
    """Say which names can be of no backbone: no pocket model, no directory and no hub id."""
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
    """Say which optimisers cannot be built."""
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
    """Say which extractors cannot be built, and which are of no modality: a typing error."""
    faults = FaultList()
    given: dict[str, Mapping[str, ClassPath]] = {
        **{party: settings.extractors for party, settings in common.items()},
        **{f"clients.{name}": clients[name].extractors or {} for name in models},
    }
    for party, extractors in given.items():
        for modality, setting in extractors.items():
            if modality in data.modalities:
                faults.attempt(
                    check_call,
                    setting,
                    data.modalities[modality],
                    home=extractor_classes.__name__,
                    key=f"{party}.extractors.{modality}",
                )
            else:
                faults.append(
                    f"{party}.extractors: {modality!r} is none of {list(data.modalities)}"
                )
    return faults


def _try_optimizer(setting: ClassPath, *, key: str) -> None:
    """Build an optimiser over one parameter: only its class knows what it takes.

    Raises:
        ConfigurationError: If that fails, or the class is no optimiser.
    """
    home = "torch.optim"
    parameter = torch.nn.Parameter(torch.zeros(1, 1))
    check_call(setting, [parameter], home=home, key=key)
    if not isinstance(build_class(setting, [parameter], home=home, key=key), Optimizer):
        raise ConfigurationError(f"{key}.class_path: {setting['class_path']!r} is no optimiser")


def _try_scheduler(setting: ClassPath, *, key: str) -> None:
    """Build a scheduler over an optimiser of one parameter.

    Raises:
        ConfigurationError: If that fails, or the class is no scheduler that goes by rounds alone.
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
