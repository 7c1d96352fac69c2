"""Local training, the base of all algorithms: the passes of each party and their steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mlecs_lightning.modules import Objective
from mlecs_lightning.rounds import (
    Algorithm,
    ClientUpdate,
    EdgeLearner,
    Loaders,
    RoundContext,
    ServerLearner,
    TrainingPass,
)
from mlecs_lightning.wire import Message

__all__ = ["LocalTraining", "PassOrder", "Steps"]

PassOrder = Literal["public_first", "private_first", "interleaved"]


@dataclass(frozen=True)
class Steps:
    """Number of optimiser steps of each pass.

    The reference configuration takes 10 batches between communications. The defaults suit models
    of which only the backbone is pretrained.

    Attributes:
        warmup: Steps of the server on public data, before round 0.
        public: Steps of a client on public data, each round.
        private: Steps of a client on its private data, each round.
        server: Steps of the server on public data, each round.
    """

    warmup: int = 100
    public: int = 40
    private: int = 40
    server: int = 40

    def __post_init__(self) -> None:
        """Check ranges."""
        if min(self.warmup, self.public, self.private, self.server) < 0:
            raise ValueError(f"algorithm.init_args.steps must not be negative, got {self}")


class LocalTraining(Algorithm):
    """A server and clients that train without communication: the base of all algorithms.

    A client takes one pass over public and one over private data; the server trains its LLM on
    public data. Subclasses add messages and objectives.
    """

    communicates = False

    def __init__(self, *, steps: Steps | None = None, order: PassOrder = "private_first") -> None:
        """Set the passes.

        Args:
            steps: Optimiser steps of each pass.
            order: Which of a client's two passes comes first. A client is best at the data that it
                saw last: ``public_first`` ends on its own domain, ``private_first`` on all domains.
                ``interleaved`` alternates, one step of each pass in turn.
        """
        self.steps = steps or Steps()
        self.order = order

    def warmup(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> dict[str, float]:
        """Train the server's LLM on public data."""
        batches = loaders.public.take(self.steps.warmup, seed=ctx.seed_for("server", "public"))
        return server.fit(batches, self.warmup_objective(), stage="warmup")

    def client_update(
        self, edge: EdgeLearner, loaders: Loaders, broadcast: Message | None, ctx: RoundContext
    ) -> ClientUpdate:
        """Take the client's passes."""
        return ClientUpdate(None, self.local_passes(edge, loaders, ctx, broadcast))

    def server_update(
        self,
        server: ServerLearner,
        aggregate: Any,  # noqa: ANN401 - the algorithm's own class
        loaders: Loaders,
        ctx: RoundContext,
    ) -> dict[str, float]:
        """Train the server's models on public data."""
        batches = loaders.public.take(self.steps.server, seed=ctx.seed_for("server", "public"))
        return server.fit(batches, self.objective_after(aggregate, loaders), stage="public")

    def figures(self) -> tuple[str, ...]:
        """Name the losses of a client's passes."""
        return tuple(f"{stage}/{loss}" for stage, names in self.losses().items() for loss in names)

    # Parts that subclasses override ---------------------------------------------------------

    def losses(self) -> dict[str, tuple[str, ...]]:
        """Name the losses that each of a client's passes may report; see `figures`."""
        return {"public": ("loss",), "private": ("loss",)}

    def warmup_objective(self) -> Objective | None:
        """Return the objective of the warm-up; L_LM of the LLM by default."""
        return None

    def server_objective(self) -> Objective | None:
        """Return the server's objective in a round; L_LM of the LLM by default."""
        return None

    def objective_after(
        self,
        aggregate: Any,  # noqa: ANN401 - the algorithm's own class
        loaders: Loaders,
    ) -> Objective | None:
        """Return the server's objective given what it has received; `server_objective` by default.

        Args:
            aggregate: As in `server_update`.
            loaders: The server's data.
        """
        return self.server_objective()

    def edge_objective(self, edge: EdgeLearner, broadcast: Message | None) -> Objective | None:
        """Return a client's objective in both passes; L_LM by default."""
        return None

    def local_passes(
        self,
        edge: EdgeLearner,
        loaders: Loaders,
        ctx: RoundContext,
        broadcast: Message | None = None,
    ) -> dict[str, float]:
        """Take both passes in the configured order, and return the losses."""
        public = self.public_pass(edge, loaders, ctx, broadcast)
        private = self.private_pass(edge, loaders, ctx, broadcast)
        both = (public, private) if self.order == "public_first" else (private, public)
        passes = [each for each in both if each is not None]
        if self.order == "interleaved":
            return edge.fit_in_turns(passes)
        losses: dict[str, float] = {}
        for stage, batches, objective in passes:
            losses |= edge.fit(batches, objective, stage=stage)
        return losses

    def public_pass(
        self, edge: EdgeLearner, loaders: Loaders, ctx: RoundContext, broadcast: Message | None
    ) -> TrainingPass:
        """Return a client's pass over the public data."""
        batches = loaders.public.take(self.steps.public, seed=ctx.seed_for(edge.name, "public"))
        return TrainingPass("public", batches, self.edge_objective(edge, broadcast))

    def private_pass(
        self, edge: EdgeLearner, loaders: Loaders, ctx: RoundContext, broadcast: Message | None
    ) -> TrainingPass | None:
        """Return a client's pass over its private data, if it takes one."""
        assert loaders.private is not None
        batches = loaders.private.take(self.steps.private, seed=ctx.seed_for(edge.name, "private"))
        return TrainingPass("private", batches, self.edge_objective(edge, broadcast))
