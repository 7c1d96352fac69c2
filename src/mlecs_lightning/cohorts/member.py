"""What an objective sees of its client's model while the cohort trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from mlecs_lightning.cohorts.stack import NotTogetherError
from mlecs_lightning.nn.connector import Embeddings
from mlecs_lightning.nn.tower import TowerOutput
from mlecs_lightning.types import Batch

__all__ = ["Member", "parts_of"]


class _Adapter(NamedTuple):
    """The backbone of one client: its adapter alone."""

    parameters: Callable[[], Mapping[str, Tensor]]

    def adapter_parameters(self) -> Mapping[str, Tensor]:
        """Return the trainable tensors of the client's adapter under PEFT's names."""
        return self.parameters()


class Member:
    """The module of one client, for the objective of the present step.

    It has what objectives of a client use: `read` of the batch, the adapter, and a few more. All
    else raises `NotTogetherError`, so that no objective meets the weights of another client.
    """

    def __init__(
        self,
        batch: Batch,
        read: Callable[[bool], TowerOutput],
        adapter: Callable[[], Mapping[str, Tensor]],
        device: torch.device,
    ) -> None:
        """Take what the client has of the cohort's step.

        Args:
            batch: The client's batch.
            read: Returns the client's part of the batched pass; with frozen extractors if true.
            adapter: Returns the client's adapter.
            device: The device.
        """
        self._batch, self._read, self._frozen = batch, read, False
        self._reads = set[bool]()
        self.backbone, self.device = _Adapter(adapter), device

    def read(self, batch: Batch, *, tower: str | None = None) -> TowerOutput:
        """See `MultimodalLM.read`."""
        if batch is not self._batch or tower is not None:
            raise NotTogetherError("an objective reads another batch, or with another tower")
        if self._frozen in self._reads:  # dropout would have to be drawn anew
            raise NotTogetherError("an objective reads its batch twice")
        self._reads.add(self._frozen)
        return self._read(self._frozen)

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
