"""Baselines without communication, and an upper bound that pools all data."""

from __future__ import annotations

from typing import Any

from mlecs_lightning.algorithms.answers import Questions, answer_all, taught
from mlecs_lightning.algorithms.base import LocalTraining, PassOrder, Steps
from mlecs_lightning.rounds import ClientUpdate, EdgeLearner, Loaders, RoundContext, ServerLearner
from mlecs_lightning.wire import Message

__all__ = ["Centralized", "Standalone", "StandalonePublic"]


class _SelfTraining(LocalTraining):
    """Training in which a party may learn from its own answers, beside the known targets."""

    def __init__(
        self,
        *,
        steps: Steps | None = None,
        order: PassOrder = "private_first",
        self_training: float | None = None,
    ) -> None:
        """Set the passes, and whether parties train on their own answers.

        Args:
            steps: Optimiser steps of each pass.
            order: Which of a client's two passes comes first; see `LocalTraining`.
            self_training: Minimum probability, under the model itself, of an answer to a public
                sample without a target for the model to train on it, in 0..1 (pseudo-labels, Lee,
                ICML 2013 workshop). The server answers before the public pass of each round, a
                client from the second round on: before the first one it has learnt nothing.
                ``None`` for no self-training.

        Raises:
            ValueError: If ``self_training`` is outside [0, 1].
        """
        super().__init__(steps=steps, order=order)
        if self_training is not None and not 0 <= self_training <= 1:
            raise ValueError(
                f"algorithm.init_args.self_training must lie in [0, 1], got {self_training}"
            )
        self.self_training = self_training

    def client_update(
        self, edge: EdgeLearner, loaders: Loaders, broadcast: Message | None, ctx: RoundContext
    ) -> ClientUpdate:
        """Take the client's passes, with its own answers as targets."""
        if ctx.round > 0:
            loaders = self._self_taught(edge, loaders)
        return super().client_update(edge, loaders, broadcast, ctx)

    def server_update(
        self,
        server: ServerLearner,
        aggregate: Any,  # noqa: ANN401 - the algorithm's own class
        loaders: Loaders,
        ctx: RoundContext,
    ) -> dict[str, float]:
        """Train the server, with its own answers as targets."""
        loaders = self._self_taught(server, loaders)
        return super().server_update(server, aggregate, loaders, ctx)

    def _self_taught(self, learner: EdgeLearner | ServerLearner, loaders: Loaders) -> Loaders:
        if self.self_training is None:
            return loaders
        questions = Questions.of(loaders, checked=False)
        own = questions.readable(answer_all(learner, questions.asked), learner.module)
        return taught(loaders, own.above(self.self_training))


class StandalonePublic(_SelfTraining):
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


class Centralized(_SelfTraining):
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
