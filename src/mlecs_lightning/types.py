"""The nouns that every layer shares.

Shape legend, used in every docstring of the package:

| letter | meaning |
|---|---|
| B | samples of a batch |
| K | modalities, or vectors of one sample |
| D | width of the shared latent space |
| P | soft-prompt positions |
| H | hidden width of the backbone |
| T | tokens |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["Batch", "ClientProfile", "ModalityKind", "ModalitySpec"]

ModalityKind = Literal["vector", "image", "series", "text"]

_RANK: dict[str, int] = {"vector": 1, "image": 3, "series": 2, "text": 1}


@dataclass(frozen=True)
class ModalitySpec:
    """What one modality of a data set looks like.

    Attributes:
        kind: ``vector`` (F,), ``image`` (C, height, width), ``series`` (C, time) or ``text``
            (bytes), the UTF-8 of a text with zeros behind it.
        shape: The shape of one sample, without the batch dimension.
    """

    kind: ModalityKind
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that the shape has the rank of its kind."""
        if len(self.shape) != _RANK[self.kind]:
            raise ValueError(
                f"a modality of kind {self.kind!r} has {_RANK[self.kind]} dimensions, "
                f"got shape {self.shape}"
            )


@dataclass(frozen=True)
class ClientProfile:
    """What the data layer needs to know of a client.

    Attributes:
        modalities: The modalities that the client's sensors deliver (M_j), at least one.
        domains: The domains (scenes, writers, sites) whose private samples it holds;
            ``None`` lets the data module deal them out.
    """

    modalities: tuple[str, ...]
    domains: tuple[str, ...] | None = None


class Batch(NamedTuple):
    """One batch of multimodal samples.

    A named tuple, not a dataclass: Lightning and Fabric convert the tensors of a named tuple
    without a line of ours, and it cannot be changed by whoever receives it.

    Attributes:
        ids: Sample ids, length B.
        modalities: Names of the K modalities, in the order of the columns of ``present``.
        inputs: For each modality a tensor (B, ...); rows of absent samples are zero.
        present: (B, K) bool, whether the sample has the modality.
        instructions: What the model is asked, length B.
        targets: What it should answer, length B.
    """

    ids: tuple[str, ...]
    modalities: tuple[str, ...]
    inputs: dict[str, Tensor]
    present: Tensor
    instructions: tuple[str, ...]
    targets: tuple[str, ...]

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device.

        Lightning and Fabric call this where there is such a method, and look at every string of
        the batch where there is none.
        """
        inputs = {name: column.to(device) for name, column in self.inputs.items()}
        return self._replace(inputs=inputs, present=self.present.to(device))
