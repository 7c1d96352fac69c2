"""A count of all bytes sent and received."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

__all__ = ["Ledger", "Way"]

Way = Literal["uplink", "downlink", "provision", "evaluation"]
"""Updates, broadcasts, first states of devices, and scores that devices have measured."""


class Ledger:
    """Counts bytes by direction, client and component."""

    def __init__(self) -> None:
        """Start at zero."""
        self._bytes: Counter[tuple[str, str, str]] = Counter()
        self._messages: Counter[tuple[str, str]] = Counter()

    def add(self, direction: Way, client: str, parts: dict[str, int]) -> None:
        """Count one message, given its bytes by component."""
        for component, size in parts.items():
            self._bytes[direction, client, component] += size
        self._messages[direction, client] += 1

    def total(self, direction: Way, *, client: str | None = None) -> int:
        """Return the bytes sent in a direction, by one client or by all."""
        return sum(
            size
            for (way, name, _), size in self._bytes.items()
            if way == direction and client in (None, name)
        )

    def messages(self, direction: Way, *, client: str | None = None) -> int:
        """Return the number of messages in a direction, of one client or of all."""
        return sum(
            n
            for (way, name), n in self._messages.items()
            if way == direction and client in (None, name)
        )

    def mean_sizes(self, direction: Way) -> dict[str, float]:
        """Return the mean size in bytes of each client's messages in a direction."""
        sizes: Counter[str] = Counter()
        for (way, client, _), size in self._bytes.items():
            if way == direction:
                sizes[client] += size
        return {c: sizes[c] / n for (way, c), n in self._messages.items() if way == direction}

    def per_message(self, direction: Way) -> float:
        """Return the mean size of a message in bytes: one client, one round, one direction."""
        messages = self.messages(direction)
        return self.total(direction) / messages if messages else 0.0

    def by_component(self) -> dict[str, dict[str, int]]:
        """Return bytes by direction and component."""
        table: dict[str, dict[str, int]] = {"uplink": {}, "downlink": {}}
        for (way, _, component), size in sorted(self._bytes.items()):
            row = table.setdefault(way, {})
            row[component] = row.get(component, 0) + size
        return table

    def state_dict(self) -> dict[str, Any]:
        """Return plain lists, strings and numbers."""
        return {
            "bytes": [[*key, n] for key, n in sorted(self._bytes.items())],
            "messages": [[*key, n] for key, n in sorted(self._messages.items())],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._bytes = Counter({(a, b, c): n for a, b, c, n in state["bytes"]})
        self._messages = Counter({(a, b): n for a, b, n in state["messages"]})
