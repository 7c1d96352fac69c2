"""The parties of a federation: what the YAML says of them, and the live modules built from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from lightning.fabric import Fabric, seed_everything

from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.data.availability import draw_client_modalities
from mlecs_lightning.federated.algorithm import Algorithm
from mlecs_lightning.federated.context import derive_seed
from mlecs_lightning.federated.learner import EdgeLearner, Learner, ServerLearner
from mlecs_lightning.federated.state import ClientStore
from mlecs_lightning.modules import EdgeModule, ServerModule
from mlecs_lightning.modules.pocket import is_pocket, make_pocket
from mlecs_lightning.settings import ConfigurationError, ModelSettings, override
from mlecs_lightning.types import ClientProfile

__all__ = ["ClientSettings", "DrawnClients", "Federation", "FederationSettings", "Parties"]


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
    """

    modalities: list[str]
    domains: list[str] | None = None
    backbone: dict[str, Any] | None = None
    lora: dict[str, Any] | None = None
    connector: dict[str, Any] | None = None
    extractors: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None

    def model(self, edge: ModelSettings, *, key: str) -> ModelSettings:
        """Return the edge's settings with this client's own values."""
        own = {
            name: value
            for name in ("backbone", "lora", "connector", "extractors", "optimizer")
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
        """Return the clients by name, drawing them if need be.

        Raises:
            ValueError: If there are none.
        """
        if isinstance(self.clients, DrawnClients):
            drawn = draw_client_modalities(
                list(modalities),
                self.clients.count,
                rate=self.clients.modality_rate,
                seed=self.clients.seed,
            )
            return {name: ClientSettings(list(has)) for name, has in drawn.items()}
        if not self.clients:
            raise ValueError("clients: name at least one, or give count and modality_rate")
        return self.clients


@dataclass(frozen=True)
class Parties:
    """The settings of every party, checked and complete; the ground on which modules are built.

    Attributes:
        server: Settings of the server's LLM.
        hosted: Settings of the SLM that the server hosts.
        profiles: For each client what the data layer knows of it.
        models: For each client its settings.
        seed: Base seed of the run.
    """

    server: ModelSettings
    hosted: ModelSettings
    profiles: dict[str, ClientProfile]
    models: dict[str, ModelSettings]
    seed: int

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
        try:
            clients = settings.named_clients(data.modalities)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        # Names become folders and parts of metric names, beside those of the server.
        faults = [
            f"clients: the name {name!r} is taken or no name; one begins with a letter, a digit or "
            "'_' and goes on with these, '.', '-' and spaces"
            for name in clients
            if name == "server" or not re.fullmatch(r"\w[\w. -]*", name)
        ]
        models: dict[str, ModelSettings] = {}
        for name, client in clients.items():
            try:
                models[name] = client.model(settings.edge, key=f"clients.{name}")
            except ValueError as error:
                faults.append(str(error))
        faults += _unlike(models, settings)
        faults += _idle_extractors(settings, clients, data)
        for model in {settings.server.backbone.model, *(m.backbone.model for m in models.values())}:
            try:
                is_pocket(model)
            except ValueError as error:
                faults.append(str(error))
        if models:
            loras = {name: m.lora for name, m in models.items()}
            faults += algorithm.faults(loras, batch_size=data.batch_size)
        profiles = {
            name: ClientProfile(
                tuple(c.modalities), None if c.domains is None else tuple(c.domains)
            )
            for name, c in clients.items()
        }
        try:
            data.attach(profiles)
        except (ValueError, FileNotFoundError) as error:
            faults.append(str(error))
        if faults:
            raise ConfigurationError("\n".join(["the configuration has faults:", *faults]))
        first = next(iter(models.values()))
        lora = algorithm.hosted_lora({name: m.lora for name, m in models.items()})
        hosted = replace(settings.server, backbone=first.backbone, lora=lora)
        return cls(settings.server, hosted, profiles, models, settings.seed)


def _unlike(models: Mapping[str, ModelSettings], settings: FederationSettings) -> list[str]:
    """Say which clients cannot be in one federation with the others."""
    faults = []
    width = settings.server.connector.width
    slm = settings.edge.backbone
    for name, model in models.items():
        if model.connector.width != width:
            faults.append(
                f"clients.{name}: connector.width is {model.connector.width}, the server's is "
                f"{width}; all parties share one latent space"
            )
        if model.backbone.model != slm.model:
            faults.append(
                f"clients.{name}.backbone.model is {model.backbone.model!r}, edge.backbone.model "
                f"is {slm.model!r}; clients of one federation share one SLM"
            )
    return faults


def _idle_extractors(
    settings: FederationSettings, clients: Mapping[str, ClientSettings], data: FederatedDataModule
) -> list[str]:
    """Say which extractors are of no modality: most likely a typing error."""
    given: dict[str, Mapping[str, Any] | None] = {
        "server": settings.server.extractors,
        "edge": settings.edge.extractors,
        **{f"clients.{name}": client.extractors for name, client in clients.items()},
    }
    return [
        f"{party}.extractors: {modality!r} is none of {list(data.modalities)}"
        for party, extractors in given.items()
        for modality in extractors or {}
        if modality not in data.modalities
    ]


def _with_backbone(settings: ModelSettings, data: FederatedDataModule) -> ModelSettings:
    """Replace the name of a pocket model by its directory, making the model if need be."""
    if not is_pocket(settings.backbone.model):
        return settings
    path = make_pocket(
        settings.backbone.model, data.pretraining_pairs(), data.public().instructions
    )
    return replace(settings, backbone=replace(settings.backbone, model=str(path)))


class Federation:
    """The live modules: one for the server, and one for each architecture among the clients.

    Clients with equal modalities and settings share a module; their states are swapped through it.
    All modules of a process share one frozen copy of each backbone. So memory grows with the
    clients' own trainable states and with nothing else.
    """

    def __init__(
        self,
        parties: Parties,
        data: FederatedDataModule,
        *,
        fabric: Fabric,
        gradient_clip_val: float | None,
    ) -> None:
        """Build the modules.

        Args:
            parties: The checked settings.
            data: Says what the modalities look like.
            fabric: Device, precision and strategy.
            gradient_clip_val: As in Lightning.
        """
        self.parties = parties
        self.store = ClientStore()
        specs = dict(data.modalities)
        learner = partial(Learner, fabric=fabric, gradient_clip_val=gradient_clip_val)
        seed_everything(derive_seed(parties.seed, "server") % 2**32, verbose=False)
        self.server: ServerLearner = learner(
            "server",
            ServerModule(
                _with_backbone(parties.server, data), _with_backbone(parties.hosted, data), specs
            ),
            sync=True,
        )
        self._edges: dict[str, EdgeLearner] = {}
        self._architecture: dict[str, str] = {}
        for name, profile in parties.profiles.items():
            ordered = {m: s for m, s in specs.items() if m in profile.modalities}
            key = json.dumps([list(ordered), asdict(parties.models[name])], sort_keys=True)
            self._architecture[name] = key
            if key not in self._edges:
                # Clients of one architecture start from the same weights; the seed does not depend
                # on which of them comes first.
                seed_everything(derive_seed(parties.seed, key) % 2**32, verbose=False)
                module = EdgeModule(
                    _with_backbone(parties.models[name], data), ordered, key=f"clients.{name}"
                )
                self._edges[key] = learner(name, module, sync=False)
        self._initial: dict[str, dict[str, Any]] = {}

    @property
    def clients(self) -> tuple[str, ...]:
        """The clients' names, in the order of the settings."""
        return tuple(self.parties.profiles)

    def prepare(self, algorithm: Algorithm) -> None:
        """Let the algorithm change the fresh modules, then remember where every client starts."""
        algorithm.prepare(self.server, {name: self.module(name) for name in self.clients})
        self._initial = {key: edge.state_dict() for key, edge in self._edges.items()}

    def edge(self, client: str) -> EdgeLearner:
        """Return the live learner of a client, with that client's state in it."""
        learner = self._edges[self._architecture[client]]
        state = self.store.get(client)
        learner.load_state_dict(
            self._initial[self._architecture[client]] if state is None else state
        )
        learner.name = client
        return learner

    def module(self, client: str) -> EdgeModule:
        """Return the module of a client's architecture, whatever state is in it: for its shapes."""
        return self._edges[self._architecture[client]].module

    def keep(self, edge: EdgeLearner) -> None:
        """Store the state of the client that is live in the learner."""
        self.store.put(edge.name, edge.state_dict())
