"""What happens during a federated run, for those who want to know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["FederatedCallback"]


class FederatedCallback:
    """Base of all callbacks: every hook does nothing and takes keywords only.

    The hooks have names of their own. Fabric calls Lightning's names on every module it has set up,
    and a federation has many.
    """

    @property
    def should_stop(self) -> bool:
        """Whether the run should end after the round that is done; asked on every rank."""
        return False

    def on_fit_start(self, *, max_rounds: int, clients: tuple[str, ...], folder: str) -> None:
        """Called before the warm-up of the server."""

    def on_resume(self, *, history: tuple[Mapping[str, float], ...]) -> None:
        """Called after `on_fit_start` if a checkpoint is gone on from, with its rounds' metrics."""

    def on_round_start(self, *, round: int, participants: tuple[str, ...]) -> None:
        """Called before the broadcast."""

    def on_client_end(self, *, round: int, client: str, metrics: Mapping[str, float]) -> None:
        """Called when a client's update has passed the channel."""

    def on_client_fault(self, *, round: int, client: str, kind: str, reason: str) -> None:
        """Called in place of `on_client_end` when a client gave nothing in a round."""

    def on_aggregate(self, *, round: int, error: float, clients: int) -> None:
        """Called after the adapters were aggregated."""

    def on_round_end(self, *, round: int, metrics: Mapping[str, float]) -> None:
        """Called after evaluation and checkpoint."""

    def on_fit_end(self, *, summary: Mapping[str, Any]) -> None:
        """Called after the final test."""
