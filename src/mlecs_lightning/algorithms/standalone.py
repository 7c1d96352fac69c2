"""Baselines that do not communicate, and the ceiling of those that see everything."""

from __future__ import annotations

from typing import Any

from mlecs_lightning.algorithms.base import LocalTraining
from mlecs_lightning.rounds import EdgeLearner, Loaders, RoundContext, ServerLearner
from mlecs_lightning.wire import Message

__all__ = ["Centralized", "Standalone", "StandalonePublic"]


class StandalonePublic(LocalTraining):
    """Every client trains on its private data and on the public data; nothing is sent."""


class Standalone(LocalTraining):
    """Every client trains on its private data alone, as many steps as the others take in all."""

    def local_passes(
        self,
        edge: EdgeLearner,
        loaders: Loaders,
        ctx: RoundContext,
        broadcast: Message | None = None,
    ) -> dict[str, float]:
        """Take the steps of both passes on private data."""
        assert loaders.private is not None
        steps = self.steps.public + self.steps.private
        batches = loaders.private.take(steps, seed=ctx.seed_for(edge.name, "private"))
        return edge.fit(batches, stage="private")


class Centralized(LocalTraining):
    """All data in one place: the ceiling, which breaks the promise that data stay on the devices.

    Every party sees the private samples of all clients, as their sensors saw them. A client's model
    trains on those that have at least one of its modalities; the server takes a private pass beside
    the public one.
    """

    pools_private = True

    def server_update(
        self,
        server: ServerLearner,
        aggregate: Any,  # noqa: ANN401 - the algorithm's own class
        loaders: Loaders,
        ctx: RoundContext,
    ) -> dict[str, float]:
        """Train the server on public data, then on everybody's private data."""
        losses = super().server_update(server, aggregate, loaders, ctx)
        assert loaders.private is not None
        seed = ctx.seed_for("server", "private")
        return losses | server.fit(
            loaders.private.take(self.steps.server, seed=seed), stage="private"
        )
