"""The models of the clients, and the states that they take turns in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any, NamedTuple

from lightning.fabric import Fabric, seed_everything
from torch import Tensor

from mlecs_lightning.checkpoints.client_store import ClientStore, MemoryStore
from mlecs_lightning.clients.backbones import check_inference, with_backbone
from mlecs_lightning.clients.parties import Parties
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.modules import EdgeModule
from mlecs_lightning.modules.contents import Contents
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.rounds.context import derive_seed
from mlecs_lightning.rounds.learner import EdgeLearner, Learner
from mlecs_lightning.settings import ModelSettings

__all__ = ["CodecState", "Edges"]


class CodecState(NamedTuple):
    """What a codec needs from a client's last round, on both sides.

    Attributes:
        received: The adapter that the device received last, known to both sides.
        left: What the device's last message left out, known to the device alone.
    """

    received: Mapping[str, Tensor]
    left: Mapping[str, Tensor]

    def plain(self) -> dict[str, dict[str, Tensor]]:
        """Return it as plain dicts of tensors on the CPU, for a checkpoint."""
        return {
            part: {key: tensor.cpu() for key, tensor in tensors.items()}
            for part, tensors in self._asdict().items()
        }


class Edges:
    """One module for each architecture among the clients.

    Clients with equal modalities and settings share a module, into which their states are loaded in
    turn. All modules of a process share one frozen copy of each backbone, so memory grows only with
    the trainable states of the clients. A device of its own has one client.
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
            ConfigurationError: If a model cannot be loaded.
        """
        self.parties = parties
        self.store: ClientStore = MemoryStore()
        specs = dict(data.modalities)
        learner = partial(Learner, fabric=fabric, gradient_clip_val=gradient_clip_val)
        self._edges: dict[str, EdgeLearner] = {}
        sizes: dict[str, int] = {}
        self._architecture: dict[str, str] = {}
        for name, profile in parties.profiles.items():
            ordered = {m: s for m, s in specs.items() if m in profile.modalities}
            key = _architecture_key(ordered, parties.models[name])
            self._architecture[name] = key
            if key not in self._edges:
                # Clients of one architecture start with equal weights, whichever is first.
                seed_everything(derive_seed(parties.seed, key) % 2**32, verbose=False)
                own = f"clients.{name}"
                settings = with_backbone(parties.models[name], data, key=own)
                check_inference(settings, fabric, key=own)
                proxy = None
                if parties.uses_proxy:
                    hosted = with_backbone(parties.hosted, data, key="edge")
                    proxy = replace(settings, backbone=hosted.backbone, lora=hosted.lora)
                module = EdgeModule(settings, ordered, proxy=proxy, key=own)
                sizes[key] = module.parameter_bytes()
                if algorithm is not None:
                    algorithm.build_edge(module, specs)
                self._edges[key] = learner(name, module, sync=False)
        self.edge_bytes = {name: sizes[key] for name, key in self._architecture.items()}
        """Bytes of all parameters of each client's model, before an algorithm shrinks it."""
        self._initial: dict[str, dict[str, Any]] = {}
        # A device gets them with its first state.
        self._shipped: dict[str, Mapping[str, Tensor]] = {}

    @property
    def clients(self) -> tuple[str, ...]:
        """The clients' names, in the order of the settings."""
        return tuple(self.parties.profiles)

    @property
    def own(self) -> tuple[str, ...]:
        """The clients that train in this process."""
        return self.clients

    def prepare_edges(self, algorithm: Algorithm) -> None:
        """Let the algorithm change the fresh modules of the clients."""
        for name in self.clients:
            algorithm.prepare_edge(name, self.module(name))

    def keep_initial(self) -> None:
        """Take the present state of each module as the one that its clients start from."""
        self._initial = {key: edge.state_dict() for key, edge in self._edges.items()}

    def frozen_contents(self) -> Contents:
        """Return name and digests of every frozen part of the clients' models.

        They have the name of the first client of each architecture.
        """
        return {
            f"clients.{edge.name}.{part}": content
            for edge in self._edges.values()
            for part, content in edge.module.frozen_contents().items()
        }

    def describe(self) -> dict[str, Any]:
        """Return plain values from which the modules can be rebuilt without data, for checkpoints.

        Each of ``architectures`` are arguments of a module; ``clients`` maps each client to the
        index of its architecture.
        """
        keys = list(self._edges)
        return {
            "architectures": [dict(self._edges[key].module.hparams) for key in keys],
            "clients": {name: keys.index(self._architecture[name]) for name in self.clients},
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

    def architecture(self, client: str) -> str:
        """Return a key that the clients of one architecture share, and with it a module."""
        return self._architecture[client]

    def learner(self, client: str) -> EdgeLearner:
        """Return the learner of a client's architecture; its state is arbitrary."""
        return self._edges[self._architecture[client]]

    def codec_state(self, client: str) -> CodecState:
        """Return the codec state of a client after its last round."""
        state = self.store.get(client)
        if state is None or "wire" not in state:
            return CodecState(self._shipped.get(self._architecture[client], {}), {})
        return CodecState(**state["wire"])

    def keep(self, edge: EdgeLearner, *, round: int, codec_state: CodecState | None = None) -> None:
        """Store the state of the learner's client after a round."""
        self.store.put(edge.name, self.state_of(edge, codec_state), round=round)

    @staticmethod
    def state_of(edge: EdgeLearner, codec_state: CodecState | None = None) -> dict[str, Any]:
        """Return what the store keeps of the learner's client."""
        state = edge.state_dict()
        if codec_state is not None:
            state["wire"] = codec_state.plain()
        return state


def _architecture_key(modalities: Iterable[str], settings: ModelSettings) -> str:
    """Return what the clients of one architecture share; the seed of their first weights.

    Settings that came later count only where they are set, so that a configuration without them
    keeps its weights.
    """
    values = asdict(settings)
    if values["lora"]["scope"] is None:
        del values["lora"]["scope"]
    return json.dumps([list(modalities), values], sort_keys=True)
