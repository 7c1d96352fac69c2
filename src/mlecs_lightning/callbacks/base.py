"""The hooks of callbacks in a federated run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["FederatedCallback"]


class FederatedCallback:
    """Base of all callbacks: every hook does nothing and takes keywords only.

    The hooks have names of their own, because Fabric calls Lightning's hooks on every module that
    it has set up, and a federation has many modules.
    """

    @property
    def should_stop(self) -> bool:
        """Whether the run should end after the current round; read on every rank."""
        return False

    def on_fit_start(self, *, max_rounds: int, clients: tuple[str, ...], folder: str) -> None:
        """Called before the warm-up of the server."""

    def on_resume(self, *, history: tuple[Mapping[str, float], ...]) -> None:
        """Called after `on_fit_start` in a resumed run, with the metrics of its earlier rounds."""

    def on_round_start(self, *, round: int, participants: tuple[str, ...]) -> None:
        """Called before the broadcast."""

    def on_client_end(self, *, round: int, client: str, metrics: Mapping[str, float]) -> None:
        """Called when a client's update has been accepted."""

    def on_client_fault(self, *, round: int, client: str, kind: str, reason: str) -> None:
        """Called instead of `on_client_end` when there is no update of a client."""

    def on_aggregate(self, *, round: int, error: float, clients: int) -> None:
        """Called after the adapters were aggregated."""

    def on_round_end(self, *, round: int, metrics: Mapping[str, float]) -> None:
        """Called after evaluation and checkpoint."""

    def on_fit_end(self, *, summary: Mapping[str, Any]) -> None:
        """Called after the final test."""
