"""Settings of the clients, given by name or drawn at random."""

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
    "Federation",
    "are_drawn",
    "client_settings",
    "named_clients",
    "profiles",
]


@dataclass(frozen=True)
class ClientSettings:
    """Settings of one client.

    Attributes:
        modalities: The modalities of its sensors.
        domains: The domains whose private samples it holds; assigned by the data if not given.
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
        """Return the edge settings, overridden by this client's own values."""
        own = {
            name: value
            for name in ("backbone", "lora", "connector", "extractors", "optimizer", "lr_scheduler")
            if (value := getattr(self, name)) is not None
        }
        return override(edge, own, key=key)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class DrawnClients:
    """Clients with randomly drawn modalities.

    Attributes:
        count: Number of clients.
        modality_rate: Probability that a client has a modality; 0.7 in the reference configuration.
        seed: Seed of the draw.
    """

    count: int
    modality_rate: float = 0.7
    seed: int = 0


@dataclass(frozen=True)
class Federation:
    """Settings of all parties.

    Attributes:
        server: The cloud LLM.
        edge: Defaults of every client.
        clients: The clients by name, or how to draw them.
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
    """Return whether the YAML says how to draw clients instead of naming them."""
    if not clients or any(isinstance(client, Mapping) for client in clients.values()):
        return False
    numbers = all(isinstance(value, int | float) for value in clients.values())
    return numbers or any(key.name in clients for key in fields(DrawnClients))


def client_settings(
    clients: Mapping[str, Any], modalities: list[str]
) -> tuple[dict[str, ClientSettings] | DrawnClients, list[str]]:
    """Check names and types of all values, and build the client settings.

    Args:
        clients: The value in the YAML: clients by name, or how to draw them.
        modalities: Used for a client whose own modalities are missing or invalid.

    Returns:
        The settings and the faults. If there are faults, the settings hold the valid values, so
        that they can be checked further.
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
    """Return the valid values of a dataclass, and the faults of the others."""
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
    """Return the clients by name, drawn if necessary.

    Raises:
        ValueError: If there are none, or a number is out of range.
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
    """Return the profile of each client for the data layer."""
    return {
        name: ClientProfile(tuple(c.modalities), None if c.domains is None else tuple(c.domains))
        for name, c in clients.items()
    }
