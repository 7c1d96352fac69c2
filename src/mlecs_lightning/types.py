"""Types that all layers share.

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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["Batch", "ClientProfile", "ModalityKind", "ModalitySpec"]

ModalityKind = Literal["vector", "image", "series", "text"]

_RANK: dict[str, int] = {"vector": 1, "image": 3, "series": 2, "text": 1}


@dataclass(frozen=True)
class ModalitySpec:
    """Kind and shape of a modality.

    Attributes:
        kind: ``vector`` (F,), ``image`` (C, height, width), ``series`` (C, time) or ``text``
            (bytes), UTF-8 padded with zeros.
        shape: The shape of one sample, without the batch dimension.
        tokens: For a text that the language model reads word by word, the maximum number of its
            tokens; 0 if an extractor turns the input into a vector, as for all other kinds.
    """

    kind: ModalityKind
    shape: tuple[int, ...]
    tokens: int = 0

    def __post_init__(self) -> None:
        """Check that the shape has the rank of its kind, and that only a text has tokens."""
        if len(self.shape) != _RANK[self.kind]:
            raise ValueError(
                f"a modality of kind {self.kind!r} has {_RANK[self.kind]} dimensions, "
                f"got shape {self.shape}"
            )
        if self.tokens and self.kind != "text":
            raise ValueError(f"only a modality of kind 'text' has tokens, got kind {self.kind!r}")
        if self.tokens < 0:
            raise ValueError(f"tokens must not be negative, got {self.tokens}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for weights-only checkpoints."""
        tokens = {"tokens": self.tokens} if self.tokens else {}
        return {"kind": self.kind, "shape": list(self.shape), **tokens}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModalitySpec:
        """Build from what `to_dict` returned."""
        return cls(values["kind"], tuple(values["shape"]), values.get("tokens", 0))


@dataclass(frozen=True)
class ClientProfile:
    """What the data layer knows of a client.

    Attributes:
        modalities: The modalities of the client's sensors (M_j), at least one.
        domains: The domains (scenes, writers, sites) whose private samples it holds;
            ``None`` lets the data module assign them.
    """

    modalities: tuple[str, ...]
    domains: tuple[str, ...] | None = None


class Batch(NamedTuple):
    """One batch of multimodal samples.

    A named tuple, since it is immutable and Lightning and Fabric convert its tensors.

    Attributes:
        ids: Sample ids, length B.
        modalities: Names of the K modalities, in the order of the columns of ``present``.
        inputs: For each modality a tensor (B, ...); rows of absent samples are zero.
        present: (B, K) bool, whether the sample has the modality.
        instructions: The instructions to the model, length B.
        targets: The expected answers, length B.
    """

    ids: tuple[str, ...]
    modalities: tuple[str, ...]
    inputs: dict[str, Tensor]
    present: Tensor
    instructions: tuple[str, ...]
    targets: tuple[str, ...]

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device.

        Lightning and Fabric call this method; without it they would visit every string of the
        batch.
        """
        cuda = torch.device(device).type == "cuda"  # elsewhere it is not safe
        inputs = {n: column.to(device, non_blocking=cuda) for n, column in self.inputs.items()}
        return self._replace(inputs=inputs, present=self.present.to(device, non_blocking=cuda))
