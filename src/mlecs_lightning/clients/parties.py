"""The checked and complete settings of every party."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlecs_lightning.clients.checks import configuration_faults
from mlecs_lightning.clients.groups import group_clients
from mlecs_lightning.clients.settings import Federation, profiles
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.settings import ModelSettings
from mlecs_lightning.types import ClientProfile

__all__ = ["Parties"]


@dataclass(frozen=True)
class Parties:
    """The checked and complete settings of every party, from which modules are built.

    Attributes:
        server: Settings of the server's LLM.
        groups: For each hosted SLM the clients of its group.
        hosts: Settings of each hosted SLM.
        profiles: What the data layer knows of each client.
        models: Settings of each client.
        seed: Base seed of the run.
        uses_proxy: Whether clients have a proxy with the hosted backbone and adapter.
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
        """Settings of the first hosted SLM, the only one if all clients are in one group."""
        return next(iter(self.hosts.values()))

    def key_of(self, host: str) -> str:
        """Return the key that the settings of a hosted SLM come from, for error messages."""
        return "edge" if len(self.hosts) == 1 else f"clients.{self.groups[host][0]}"

    def only(self, client: str) -> Parties:
        """Return what a device needs: its client, and the host whose adapter a proxy has."""
        return replace(
            self,
            hosts=self.hosts if self.uses_proxy else {},
            profiles={client: self.profiles[client]},
            models={client: self.models[client]},
        )

    @classmethod
    def resolve(
        cls, settings: Federation, algorithm: Algorithm, data: FederatedDataModule
    ) -> Parties:
        """Check everything that can be known before a model is built, and partition the data.

        Args:
            settings: The user's settings.
            algorithm: The method; it checks the settings, too.
            data: The data; the clients are attached to it.

        Raises:
            ConfigurationError: If anything does not fit; one message with all faults and their
                keys.
        """
        common = {"server": settings.server, "edge": settings.edge}
        faults = configuration_faults(settings.clients, common, algorithm=algorithm, data=data)
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
            lora = replace(lora, private_r=0, scope=None)
            hosts[host] = replace(settings.server, backbone=own.backbone, lora=lora)
        return cls(
            settings.server,
            groups,
            hosts,
            profiles(clients),
            models,
            settings.seed,
            algorithm.uses_proxy,
        )
