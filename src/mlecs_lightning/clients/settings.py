"""What the YAML says of the clients, by name or drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from mlecs_lightning.data.availability import draw_client_modalities
from mlecs_lightning.settings import ModelSettings, override, value_faults
from mlecs_lightning.types import ClientProfile

__all__ = [
    "ClientSettings",
    "DrawnClients",
    "FederationSettings",
    "are_drawn",
    "client_settings",
    "named_clients",
    "profiles",
]


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
        lr_scheduler: Values that differ from ``edge.lr_scheduler``.
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


def profiles(clients: Mapping[str, ClientSettings]) -> dict[str, ClientProfile]:
    """Return what the data layer knows of each client."""
    return {
        name: ClientProfile(tuple(c.modalities), None if c.domains is None else tuple(c.domains))
        for name, c in clients.items()
    }
