"""Training of the server on samples that lack some of their modalities."""

from __future__ import annotations

from dataclasses import dataclass

from mlecs_lightning.data.availability import without_some_modalities
from mlecs_lightning.modules import Losses, Objective, ServerModule
from mlecs_lightning.types import Batch

__all__ = ["SensorDropout"]


@dataclass(frozen=True)
class SensorDropout:
    """An objective of the server over samples from which modalities are left out at random.

    The server then learns to represent what a client with few sensors sees (our choice).

    Attributes:
        rate: Probability that a sample lacks a modality; one is always left.
        objective: The objective; L_LM of the LLM by default.
    """

    rate: float
    objective: Objective | None = None

    def __call__(self, server: ServerModule, batch: Batch) -> Losses:
        """Return the losses on such a batch."""
        if server.training:
            batch = without_some_modalities(batch, self.rate)
        if self.objective is None:
            return {"loss": server.mean_loss(server.read(batch))}
        return self.objective(server, batch)
