"""Baselines without communication, and an upper bound that pools all data."""

from __future__ import annotations

from typing import Any

from mlecs_lightning.algorithms.base import LocalTraining
from mlecs_lightning.rounds import EdgeLearner, Loaders, RoundContext, ServerLearner
from mlecs_lightning.wire import Message

__all__ = ["Centralized", "Standalone", "StandalonePublic"]


class StandalonePublic(LocalTraining):
    """Every client trains on its private data and on the public data; nothing is sent."""


class Standalone(LocalTraining):
    """Every client trains on its private data alone, with as many steps as others take in total."""

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
    """All data in one place: an upper bound, in which private data do not stay on the devices.

    Every party sees the private samples of all clients, as their sensors recorded them. A client's
    model trains on those that have at least one of its modalities; the server takes a private pass
    after the public one.
    """

    pools_private = True

    def server_update(
        self,
        server: ServerLearner,
        aggregate: Any,  # noqa: ANN401 - the algorithm's own class
        loaders: Loaders,
        ctx: RoundContext,
    ) -> dict[str, float]:
        """Train the server on public data, then on all private data."""
        losses = super().server_update(server, aggregate, loaders, ctx)
        assert loaders.private is not None
        seed = ctx.seed_for("server", "private")
        return losses | server.fit(
            loaders.private.take(self.steps.server, seed=seed), stage="private"
        )
