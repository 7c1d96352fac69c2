"""What an objective sees of its client's model while the cohort trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from mlecs_lightning.cohorts.stack import NotTogetherError
from mlecs_lightning.nn.connector import Embeddings
from mlecs_lightning.nn.tower import TowerOutput
from mlecs_lightning.types import Batch

__all__ = ["Member", "Reads", "parts_of"]


class Reads(NamedTuple):
    """How an objective reads a batch.

    Attributes:
        frozen: Whether with frozen extractors.
        towers: Names of the towers.
    """

    frozen: bool
    towers: tuple[str, ...]


class _Adapter(NamedTuple):
    """The backbone of one client: its adapter alone."""

    parameters: Callable[[], Mapping[str, Tensor]]

    def adapter_parameters(self) -> Mapping[str, Tensor]:
        """Return the trainable tensors of the client's adapter under PEFT's names."""
        return self.parameters()


class Member:
    """The module of one client, for the objective of the present step.

    It has what objectives of a client use: the batch as a tower reads it, or as all towers do, the
    exchanged adapter, and a few more. All else raises `NotTogetherError`, so that no objective
    meets the weights of another client.
    """

    def __init__(
        self,
        batch: Batch,
        read: Callable[[Reads], dict[str, TowerOutput]],
        adapter: Callable[[], Mapping[str, Tensor]],
        towers: Sequence[str],
        device: torch.device,
    ) -> None:
        """Take what the client has of the cohort's step.

        Args:
            batch: The client's batch.
            read: Returns the client's part of the batched pass of each tower, by name.
            adapter: Returns the client's adapter.
            towers: Names of the towers, the first one first.
            device: The device.
        """
        self._batch, self._read, self._frozen = batch, read, False
        self._towers, self._reads = tuple(towers), set[Reads]()
        self.backbone, self.device = _Adapter(adapter), device

    def read(self, batch: Batch, *, tower: str | None = None) -> TowerOutput:
        """See `MultimodalLM.read`."""
        (output,) = self.read_towers(batch, tower or self._towers[0]).values()
        return output

    def read_towers(self, batch: Batch, *names: str) -> dict[str, TowerOutput]:
        """See `MultimodalLM.read_towers`."""
        if batch is not self._batch:
            raise NotTogetherError("an objective reads another batch")
        reads = Reads(self._frozen, names or self._towers)
        if reads in self._reads:  # dropout would have to be drawn anew
            raise NotTogetherError("an objective reads its batch twice")
        self._reads.add(reads)
        return self._read(reads)

    @contextmanager
    def frozen_extractors(self) -> Iterator[None]:
        """See `MultimodalLM.frozen_extractors`."""
        self._frozen = True
        try:
            yield
        finally:
            self._frozen = False

    def mean_loss(self, output: TowerOutput) -> Tensor:
        """See `MultimodalLM.mean_loss`."""
        return output.loss

    def token_mean(self, mean: Tensor, output: TowerOutput) -> Tensor:
        """See `MultimodalLM.token_mean`."""
        return mean

    def __getattr__(self, name: str) -> object:
        """Refuse whatever else a module has."""
        raise NotTogetherError(f"an objective uses {name!r} of the module")


def parts_of(output: TowerOutput, clients: int) -> list[TowerOutput]:
    """Return the part of each client in the output of a cohort, which has a loss for each.

    Args:
        output: The output.
        clients: Number of clients, whose rows are side by side.
    """
    own = output.embeddings
    rows = len(own.fused) // clients
    words = [own.words[n * rows : (n + 1) * rows] for n in range(clients)]
    embeddings = map(
        Embeddings,
        own.modalities.chunk(clients),
        own.present.chunk(clients),
        own.fused.chunk(clients),
        own.prompt.chunk(clients),
        words,
    )
    return list(
        map(
            TowerOutput,
            embeddings,
            output.view.chunk(clients),
            output.loss.unbind(),
            output.logits.chunk(clients),
            output.labels.chunk(clients),
            output.hidden.chunk(clients),
            output.mask.chunk(clients),
        )
    )
