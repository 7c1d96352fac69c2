"""The models of a federation, built from the settings of its parties."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric import Fabric, seed_everything
from torch import Tensor

from mlecs_lightning.checkpoints.client_store import ClientStore, MemoryStore
from mlecs_lightning.checkpoints.frozen import check_ranks
from mlecs_lightning.clients.parties import Parties
from mlecs_lightning.clients.ranks import Ranks, assign_clients
from mlecs_lightning.clients.texts import check_texts, pocket_texts
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.modules import EdgeModule, ServerModule
from mlecs_lightning.modules.pocket import is_pocket, make_pocket
from mlecs_lightning.nn.loading import load_coder, load_frozen
from mlecs_lightning.nn.texts import TextCoder
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.rounds.context import derive_seed
from mlecs_lightning.rounds.learner import EdgeLearner, Learner, ServerLearner
from mlecs_lightning.settings import BackboneSettings, LoraSettings, ModelSettings

__all__ = ["CodecState", "FederationModels", "build_server", "check_lengths"]


def _with_backbone(
    settings: ModelSettings, data: FederatedDataModule, *, key: str
) -> ModelSettings:
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


def _make_pockets(parties: Parties, data: FederatedDataModule) -> None:
    """Create the pocket models of all parties that do not exist yet."""
    settings = [parties.server, *parties.hosts.values(), *parties.models.values()]
    for model in sorted({each.backbone.model for each in settings}):
        if is_pocket(model):
            _pocket(model, data)


def check_lengths(
    parties: Parties,
    data: FederatedDataModule,
    algorithm: Algorithm | None = None,
    *,
    clients: bool = True,
) -> None:
    """Check the texts of all parties against the models that read them; see `check_texts`.

    Raises:
        ConfigurationError: If a model cannot be loaded, or a text is too long for one.
    """

    @cache
    def resolved(backbone: BackboneSettings, key: str) -> TextCoder:
        settings = replace(parties.server, backbone=backbone, lora=LoraSettings())
        return load_coder(_with_backbone(settings, data, key=key).backbone)

    check_texts(
        parties,
        data,
        lambda settings, key: resolved(settings.backbone, key),
        algorithm=algorithm,
        clients=clients,
    )


def _check_inference(settings: ModelSettings, fabric: Fabric, *, key: str) -> None:
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


def build_server(
    parties: Parties, data: FederatedDataModule, algorithm: Algorithm | None = None
) -> ServerModule:
    """Build the server with its initial weights.

    Args:
        parties: The checked settings.
        data: Provides the modalities.
        algorithm: Adds its own parts, if any.
    """
    seed_everything(derive_seed(parties.seed, "server") % 2**32, verbose=False)
    server = _with_backbone(parties.server, data, key="server")
    hosts = {
        host: _with_backbone(settings, data, key=parties.key_of(host))
        for host, settings in parties.hosts.items()
    }
    first = hosts.pop(next(iter(hosts)))
    module = ServerModule(server, first, dict(data.modalities), further=hosts)
    if algorithm is not None:
        algorithm.build_server(module, parties.profiles)
    return module


class CodecState(NamedTuple):
    """What a codec needs from a client's last round, on both sides.

    Attributes:
        received: The adapter that the device received last, known to both sides.
        left: What the device's last message left out, known to the device alone.
    """

    received: Mapping[str, Tensor]
    left: Mapping[str, Tensor]


class FederationModels:
    """One module for the server, and one for each architecture among the clients.

    Clients with equal modalities and settings share a module, into which their states are loaded in
    turn. All modules of a process share one frozen copy of each backbone, so memory grows only with
    the trainable states of the clients.
    """

    def __init__(
        self,
        parties: Parties,
        data: FederatedDataModule,
        *,
        fabric: Fabric,
        gradient_clip_val: float | None,
        algorithm: Algorithm | None = None,
    ) -> None:
        """Build the modules.

        Args:
            parties: The checked settings.
            data: Provides the modalities.
            fabric: Device, precision and strategy; launched.
            gradient_clip_val: As in Lightning.
            algorithm: Adds its own parts to the modules, if any.

        Raises:
            ConfigurationError: If a model cannot be loaded, or is not the same on all ranks.
        """
        self.parties = parties
        self.ranks = Ranks(fabric)
        self.store: ClientStore = MemoryStore()
        specs = dict(data.modalities)
        with self.ranks.first_alone():  # it shows the progress
            _make_pockets(parties, data)
        check_lengths(parties, data, algorithm)
        learner = partial(Learner, fabric=fabric, gradient_clip_val=gradient_clip_val)
        self.server: ServerLearner = learner(
            "server", build_server(parties, data, algorithm), sync=True
        )
        self._edges: dict[str, EdgeLearner] = {}
        sizes: dict[str, int] = {}
        self._architecture: dict[str, str] = {}
        for name, profile in parties.profiles.items():
            ordered = {m: s for m, s in specs.items() if m in profile.modalities}
            key = json.dumps([list(ordered), asdict(parties.models[name])], sort_keys=True)
            self._architecture[name] = key
            if key not in self._edges:
                # Clients of one architecture start with equal weights, whichever is first.
                seed_everything(derive_seed(parties.seed, key) % 2**32, verbose=False)
                own = f"clients.{name}"
                settings = _with_backbone(parties.models[name], data, key=own)
                _check_inference(settings, fabric, key=own)
                proxy = None
                if parties.uses_proxy:
                    hosted = _with_backbone(parties.hosted, data, key="edge")
                    proxy = replace(settings, backbone=hosted.backbone, lora=hosted.lora)
                module = EdgeModule(settings, ordered, proxy=proxy, key=own)
                sizes[key] = module.parameter_bytes()
                if algorithm is not None:
                    algorithm.build_edge(module, specs)
                self._edges[key] = learner(name, module, sync=False)
        self.frozen = {
            f"{party}.{part}": content
            for party, module in {
                "server": self.server.module,
                **{f"clients.{edge.name}": edge.module for edge in self._edges.values()},
            }.items()
            for part, content in module.frozen_contents().items()
        }
        """Name and digests of every frozen part, with the first client of each architecture."""
        check_ranks(self.ranks.gather(self.frozen))
        self.edge_bytes = {name: sizes[key] for name, key in self._architecture.items()}
        """Bytes of all parameters of each client's model, before an algorithm shrinks it."""
        self._initial: dict[str, dict[str, Any]] = {}
        self._shipped: dict[str, Mapping[str, Tensor]] = {}
        costs = {name: self.module(name).parameter_count() for name in parties.profiles}
        self.owner = assign_clients(costs, self.ranks.size)
        """For each client the rank that serves it; only this rank holds its state."""

    @property
    def clients(self) -> tuple[str, ...]:
        """The clients' names, in the order of the settings."""
        return tuple(self.parties.profiles)

    @property
    def own(self) -> tuple[str, ...]:
        """The clients of this process."""
        return tuple(c for c in self.clients if self.owner[c] == self.ranks.rank)

    def prepare(self, algorithm: Algorithm, *, coded: bool) -> None:
        """Let the algorithm change the fresh modules, then store every client's initial state.

        Args:
            algorithm: The algorithm.
            coded: Whether there is a codec; its first message is relative to the shipped adapters.
        """
        algorithm.prepare(self.server, {name: self.module(name) for name in self.clients})
        self._initial = {key: edge.state_dict() for key, edge in self._edges.items()}
        # Adapters of one architecture have equal shapes.
        self._shipped = {
            key: algorithm.shipped(self.server, edge.name)
            for key, edge in self._edges.items()
            if coded
        }

    def edge(self, client: str) -> EdgeLearner:
        """Return the learner of a client with the client's state loaded."""
        learner = self._edges[self._architecture[client]]
        state = self.store.get(client)
        learner.load_state_dict(
            self._initial[self._architecture[client]] if state is None else state
        )
        learner.name = client
        return learner

    def module(self, client: str) -> EdgeModule:
        """Return the module of a client's architecture, for its shapes; its state is arbitrary."""
        return self._edges[self._architecture[client]].module

    def describe(self) -> dict[str, Any]:
        """Return plain values from which the modules can be rebuilt without data, for checkpoints.

        ``server`` and each of ``architectures`` are arguments of a module; ``clients`` maps each
        client to the index of its architecture.
        """
        keys = list(self._edges)
        return {
            "server": dict(self.server.module.hparams),
            "architectures": [dict(self._edges[key].module.hparams) for key in keys],
            "clients": {name: keys.index(self._architecture[name]) for name in self.clients},
        }

    def deliver(self, algorithm: Algorithm) -> None:
        """Let the algorithm prepare the devices for delivery; store their states before round 0."""
        for client in self.own if algorithm.delivers else ():
            edge = self.edge(client)
            algorithm.deliver(self.server, edge.module)
            self.keep(
                edge, round=-1, codec_state=CodecState(algorithm.shipped(self.server, client), {})
            )

    def codec_state(self, client: str) -> CodecState:
        """Return the codec state of a client after its last round."""
        state = self.store.get(client)
        if state is None or "wire" not in state:
            return CodecState(self._shipped[self._architecture[client]], {})
        return CodecState(**state["wire"])

    def keep(self, edge: EdgeLearner, *, round: int, codec_state: CodecState | None = None) -> None:
        """Store the state of the learner's client after a round."""
        state = edge.state_dict()
        if codec_state is not None:
            parts = codec_state._asdict()
            state["wire"] = {part: dict(tensors) for part, tensors in parts.items()}
        self.store.put(edge.name, state, round=round)
