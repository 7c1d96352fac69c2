"""The result of one client's round, as the server sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from mlecs_lightning.rounds.failures import Failure
from mlecs_lightning.wire.messages import Message

__all__ = ["Outcome"]


class Outcome(NamedTuple):
    """The result of one client's round.

    Attributes:
        client: The client.
        down: Bytes that it received, by component.
        up: Bytes of its accepted message, by component.
        data: The accepted message, as bytes.
        message: The accepted message, decoded; only in the process that served the client.
        metrics: The figures of its report, and the codec's reconstruction errors.
        failure: Why there is no message, where one was due.
        moved: How far the accepted update has moved, see `Moves`.
        late: How many rounds ago the update was asked for.
        provided: Bytes of the first state that the client received, by component.
    """

    client: str
    down: dict[str, int] = {}  # noqa: RUF012 - never changed
    up: dict[str, int] = {}  # noqa: RUF012
    data: bytes | None = None
    message: Message | None = None
    metrics: dict[str, float] = {}  # noqa: RUF012
    failure: Failure | None = None
    moved: float = 0.0
    late: int = 0
    provided: dict[str, int] = {}  # noqa: RUF012

    def plain(self, data: bytes | None) -> dict[str, Any]:
        """Return it as plain values, for the checkpoint of a round that has not ended.

        Args:
            data: The accepted message, if there is one.
        """
        saved: dict[str, Any] = {
            "down": self.down,
            "up": self.up,
            "metrics": self.metrics,
            "moved": self.moved,
            "fault": None if self.failure is None else vars(self.failure),
            "message": None
            if data is None
            else torch.frombuffer(bytearray(data), dtype=torch.uint8),
        }
        return saved | {k: v for k in ("late", "provided") if (v := getattr(self, k))}

    @classmethod
    def of(cls, client: str, saved: Mapping[str, Any]) -> Outcome:
        """Return what `plain` was made of, without the message."""
        return cls(
            client,
            saved["down"],
            saved["up"],
            metrics=saved["metrics"],
            failure=None if saved["fault"] is None else Failure(**saved["fault"]),
            moved=saved.get("moved", 0.0),
            late=saved.get("late", 0),
            provided=saved.get("provided", {}),
        )
