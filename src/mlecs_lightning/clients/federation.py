"""The models of a federation, built from the settings of its parties."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from lightning.fabric import Fabric, seed_everything
from torch import Tensor

from mlecs_lightning.checkpoints.frozen import check_ranks
from mlecs_lightning.clients.backbones import check_lengths, make_pockets, with_backbone
from mlecs_lightning.clients.edges import CodecState, Edges
from mlecs_lightning.clients.parties import Parties
from mlecs_lightning.clients.ranks import Ranks, assign_clients
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.modules import ServerModule
from mlecs_lightning.modules.contents import Contents
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.rounds.context import derive_seed
from mlecs_lightning.rounds.learner import Learner, ServerLearner

__all__ = ["FederationModels", "build_server"]


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
    server = with_backbone(parties.server, data, key="server")
    hosts = {
        host: with_backbone(settings, data, key=parties.key_of(host))
        for host, settings in parties.hosts.items()
    }
    first = hosts.pop(next(iter(hosts)))
    module = ServerModule(server, first, dict(data.modalities), further=hosts)
    if algorithm is not None:
        algorithm.build_server(module, parties.profiles)
    return module


class FederationModels(Edges):
    """The server, and the clients' modules.

    If the clients are `remote`, the modules serve for their shapes: data and states are on the
    devices, and the store has what the server remembers of each.
    """

    def __init__(
        self,
        parties: Parties,
        data: FederatedDataModule,
        *,
        fabric: Fabric,
        gradient_clip_val: float | None,
        algorithm: Algorithm | None = None,
        remote: bool = False,
    ) -> None:
        """Build the modules.

        Args:
            parties: The checked settings.
            data: Provides the modalities.
            fabric: Device, precision and strategy; launched.
            gradient_clip_val: As in Lightning.
            algorithm: Adds its own parts to the modules, if any.
            remote: Whether the clients train elsewhere.

        Raises:
            ConfigurationError: If a model cannot be loaded, or is not the same on all ranks.
        """
        self.ranks, self.remote = Ranks(fabric), remote
        with self.ranks.first_alone():  # it shows the progress
            make_pockets(parties, data)
        check_lengths(parties, data, algorithm, clients=not remote)
        learner = partial(Learner, fabric=fabric, gradient_clip_val=gradient_clip_val)
        self.server: ServerLearner = learner(
            "server", build_server(parties, data, algorithm), sync=True
        )
        super().__init__(
            parties,
            data,
            fabric=fabric,
            gradient_clip_val=gradient_clip_val,
            algorithm=algorithm,
        )
        own = self.server.module.frozen_contents()
        self.frozen: Contents = {
            **{f"server.{part}": content for part, content in own.items()},
            **self.frozen_contents(),
        }
        """Name and digests of every frozen part, with the first client of each architecture."""
        check_ranks(self.ranks.gather(self.frozen))
        costs = {name: self.module(name).parameter_count() for name in parties.profiles}
        self.owner = dict.fromkeys(costs, 0) if remote else assign_clients(costs, self.ranks.size)
        """For each client the rank that serves it; only this rank holds its state."""

    @property
    def own(self) -> tuple[str, ...]:
        """The clients whose data and states are in this process."""
        return () if self.remote else self.kept

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The clients that are scored here, on all ranks together; remote ones score themselves."""
        return () if self.remote else self.clients

    @property
    def kept(self) -> tuple[str, ...]:
        """The clients that the store of this process has something of."""
        return tuple(c for c in self.clients if self.owner[c] == self.ranks.rank)

    def prepare(self, algorithm: Algorithm, *, coded: bool) -> None:
        """Let the algorithm change the fresh modules, then store every client's initial state.

        Args:
            algorithm: The algorithm.
            coded: Whether there is a codec; its first message is relative to the shipped adapters.
        """
        self.prepare_edges(algorithm)
        algorithm.prepare(self.server, {name: self.module(name) for name in self.clients})
        self.keep_initial()
        # Adapters of one architecture have equal shapes.
        self._shipped = {
            key: algorithm.shipped(self.server, edge.name)
            for key, edge in self._edges.items()
            if coded
        }

    def describe(self) -> dict[str, Any]:
        """See `Edges.describe`; ``server`` are the arguments of the server's module."""
        return {"server": dict(self.server.module.hparams), **super().describe()}

    def deliver(self, algorithm: Algorithm) -> None:
        """Let the algorithm prepare the devices for delivery; store their states before round 0.

        If the clients are remote, these states are sent to them when they join.
        """
        for client in self.clients if self.remote and algorithm.provisions else ():
            self._deliver(client, algorithm)
        for client in self.own if algorithm.delivers else ():
            self._deliver(client, algorithm)

    def _deliver(self, client: str, algorithm: Algorithm) -> None:
        edge = self.edge(client)
        algorithm.deliver(self.server, edge.module)
        self.keep(
            edge, round=-1, codec_state=CodecState(algorithm.shipped(self.server, client), {})
        )

    def confirm(
        self, client: str, *, ended: int, received: Mapping[str, Tensor], round: int
    ) -> None:
        """Note that a remote client has ended a round.

        Args:
            client: The client.
            ended: The round.
            received: The adapter that it has received, which the next message may refer to.
            round: The present round: a later one if the client's reply was late.
        """
        self.store.put(client, remembered(ended, received), round=round)

    def last_round(self, client: str) -> int | None:
        """Return the last round that a remote client has ended; ``None`` if there is none."""
        state = self.store.get(client) or {}
        return None if "round" not in state else int(state["round"])


def remembered(round: int, received: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what the server keeps of a remote client: no model, no optimiser."""
    return {"round": round, "wire": CodecState(received, {}).plain()}
