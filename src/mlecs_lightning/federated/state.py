"""What stays with the clients: trainable state and optimiser, client by client."""

from __future__ import annotations

from typing import Any

__all__ = ["ClientStore"]


class ClientStore:
    """Private states in memory; one that has none starts from its architecture's initial one."""

    def __init__(self) -> None:
        """Start empty."""
        self._states: dict[str, dict[str, Any]] = {}

    def get(self, client: str) -> dict[str, Any] | None:
        """Return the state of a client, ``None`` if it has not trained yet."""
        return self._states.get(client)

    def put(self, client: str, state: dict[str, Any]) -> None:
        """Keep the state of a client."""
        self._states[client] = state

    def state_dict(self) -> dict[str, Any]:
        """Return all states."""
        return dict(self._states)

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._states = dict(states)
