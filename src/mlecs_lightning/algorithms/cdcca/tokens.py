"""Token features, the outputs of the extractors, and their form as a message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mlecs_lightning.aggregation import Aggregate
from mlecs_lightning.wire.messages import Message, ScalarField, Schema, TensorField

__all__ = ["MAX_FEATURE", "TokenAggregate", "Tokens"]

MAX_FEATURE = 1e4
"""Largest magnitude of a feature that the server accepts.

Our choice: far beyond the output of any extractor, and small enough that sums of squares stay
finite in float32. Without it a hostile device could make the cloud's loss infinite.
"""


class Tokens(NamedTuple):
    """Features of N samples; a token is the output of one modality's extractor for one sample.

    Attributes:
        features: For each of the K modalities (N, F) float32; zero where the token is absent.
        present: (N, K) bool, which tokens are present.
        instructions: The instruction of each sample, length N.
    """

    features: dict[str, Tensor]
    present: Tensor
    instructions: tuple[str, ...]

    @property
    def samples(self) -> int:
        """The number of samples N."""
        return len(self.instructions)

    @property
    def number(self) -> int:
        """The number of present tokens."""
        return int(self.present.sum())

    def rows(self, indices: Sequence[int]) -> Tokens:
        """Return some of the samples, in the given order."""
        at = torch.as_tensor(indices, dtype=torch.int64)
        return Tokens(
            {m: x[at] for m, x in self.features.items()},
            self.present[at],
            tuple(self.instructions[i] for i in indices),
        )

    def only(self, chosen: Tensor) -> Tokens:
        """Return the tokens at (M, 2) rows and columns, for the samples that have any of them."""
        keep = torch.zeros_like(self.present)
        keep[chosen[:, 0], chosen[:, 1]] = True
        present = self.present & keep
        features = {
            m: x.masked_fill(~present[:, k : k + 1], 0.0)
            for k, (m, x) in enumerate(self.features.items())
        }
        some = present.any(dim=1).nonzero().flatten().tolist()
        return Tokens(features, present, self.instructions).rows(some)

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """Return the samples of all parts, concatenated.

        Raises:
            ValueError: If there are no parts.
        """
        if not parts:
            raise ValueError("there are no tokens to join")
        return cls(
            {m: torch.cat([part.features[m] for part in parts]) for m in parts[0].features},
            torch.cat([part.present for part in parts]),
            tuple(text for part in parts for text in part.instructions),
        )

    # As a message -------------------------------------------------------------------------------

    @staticmethod
    def schema(widths: Mapping[str, int]) -> Schema:
        """Declare token features, their positions, and the instructions.

        Args:
            widths: For each modality the width F of its features.
        """
        places = {f"positions/{m}": TensorField((None,), torch.int16) for m in widths}
        return Schema(
            {
                **{f"tokens/{m}": TensorField((None, width)) for m, width in widths.items()},
                **places,
                "asked/which": TensorField((None,), torch.int16),
            },
            {"instructions": ScalarField(tuple)},
        )

    def message(self) -> Message:
        """Return the present tokens, the rows that they belong to, and each instruction once."""
        texts = tuple(dict.fromkeys(self.instructions))
        tensors: dict[str, Tensor] = {
            "asked/which": torch.tensor(
                [texts.index(text) for text in self.instructions], dtype=torch.int16
            )
        }
        for k, (modality, x) in enumerate(self.features.items()):
            rows = self.present[:, k].nonzero().flatten()
            tensors[f"tokens/{modality}"] = x[rows].float()
            tensors[f"positions/{modality}"] = rows.to(torch.int16)
        return Message(tensors, {"instructions": texts})

    @staticmethod
    def faults(message: Message, modalities: Sequence[str]) -> list[str]:
        """List invalid values in a message that is valid under the schema."""
        texts, which = message.scalars["instructions"], message.tensors["asked/which"]
        assert isinstance(texts, tuple)
        faults = []
        if len(which) and not 0 <= int(which.min()) <= int(which.max()) < len(texts):
            faults.append(f"asked/which names other texts than the {len(texts)} that are there")
        for m in modalities:
            tokens, rows = message.tensors[f"tokens/{m}"], message.tensors[f"positions/{m}"]
            if len(tokens) != len(rows):
                faults.append(f"{len(tokens)} tokens of {m!r} have {len(rows)} positions")
            if len(rows) and not (
                int(rows[0]) >= 0 and int(rows[-1]) < len(which) and bool((rows.diff() > 0).all())
            ):
                faults.append(f"positions of {m!r} do not rise from 0 to {len(which) - 1}")
            if tokens.numel() and float(tokens.abs().max()) > MAX_FEATURE:
                faults.append(f"a feature of {m!r} is beyond {MAX_FEATURE:.0e}")
        return faults

    @classmethod
    def read(cls, message: Message, modalities: Sequence[str]) -> Tokens:
        """Return the tokens of a message that has no `faults`."""
        texts, which = message.scalars["instructions"], message.tensors["asked/which"]
        assert isinstance(texts, tuple)
        present = torch.zeros(len(which), len(modalities), dtype=torch.bool)
        features = {}
        for k, m in enumerate(modalities):
            tokens, rows = message.tensors[f"tokens/{m}"], message.tensors[f"positions/{m}"].long()
            present[rows, k] = True
            features[m] = torch.zeros(len(which), tokens.shape[1]).index_copy(0, rows, tokens)
        return cls(features, present, tuple(texts[int(i)] for i in which))


@dataclass(frozen=True, kw_only=True)
class TokenAggregate(Aggregate):
    """The token features that the devices sent in a round.

    Attributes:
        tokens: The samples of all devices, in the order of the devices.
    """

    tokens: Tokens
