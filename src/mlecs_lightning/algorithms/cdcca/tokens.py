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
_POSITIONS = 2**15
"""Number of positions that 16 bits can tell apart, from 0."""


class Tokens(NamedTuple):
    """Features of N samples; a token is one of the T outputs of a modality's extractor for one.

    Attributes:
        features: For each of the K modalities (N, T, F) float32; zero where a token is absent. T is
            1 unless the extractor has several, see `mlecs_lightning.nn.extractors.small`.
        present: (N, sum of all T) bool, which tokens are present.
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

    def counts(self) -> dict[str, int]:
        """Return the number T of tokens of each modality."""
        return {m: x.shape[1] for m, x in self.features.items()}

    def inputs(self) -> dict[str, Tensor]:
        """Return (N, T * F) of each modality, as a connector reads it."""
        return {m: x.flatten(1) for m, x in self.features.items()}

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
        columns = torch.split(present, list(self.counts().values()), dim=1)
        features = {
            m: x.masked_fill(~there.unsqueeze(-1), 0.0)
            for (m, x), there in zip(self.features.items(), columns, strict=True)
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
            widths: For each modality the width F of a token.
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
        """Return the present tokens, their positions n T + t, and each instruction once.

        Raises:
            ValueError: If a position does not fit into 16 bits.
        """
        texts = tuple(dict.fromkeys(self.instructions))
        tensors: dict[str, Tensor] = {
            "asked/which": torch.tensor(
                [texts.index(text) for text in self.instructions], dtype=torch.int16
            )
        }
        columns = torch.split(self.present, list(self.counts().values()), dim=1)
        for (modality, x), there in zip(self.features.items(), columns, strict=True):
            if there.numel() > _POSITIONS:
                raise ValueError(
                    f"{there.numel()} tokens of {modality!r} in one message, at most {_POSITIONS} "
                    "have a position: lower algorithm.init_args.steps.private or data.batch_size"
                )
            places = there.flatten().nonzero().flatten()
            tensors[f"tokens/{modality}"] = x.flatten(0, 1)[places].float()
            tensors[f"positions/{modality}"] = places.to(torch.int16)
        return Message(tensors, {"instructions": texts})

    @staticmethod
    def faults(message: Message, counts: Mapping[str, int]) -> list[str]:
        """List invalid values in a message that is valid under the schema.

        Args:
            message: The message.
            counts: The number T of tokens of each modality.
        """
        texts, which = message.scalars["instructions"], message.tensors["asked/which"]
        assert isinstance(texts, tuple)
        faults = []
        if len(which) and not 0 <= int(which.min()) <= int(which.max()) < len(texts):
            faults.append(f"asked/which names other texts than the {len(texts)} that are there")
        for m, count in counts.items():
            tokens, rows = message.tensors[f"tokens/{m}"], message.tensors[f"positions/{m}"]
            if len(tokens) != len(rows):
                faults.append(f"{len(tokens)} tokens of {m!r} have {len(rows)} positions")
            last = len(which) * count - 1
            if len(rows) and not (
                int(rows[0]) >= 0 and int(rows[-1]) <= last and bool((rows.diff() > 0).all())
            ):
                faults.append(f"positions of {m!r} do not rise from 0 to {last}")
            if tokens.numel() and float(tokens.abs().max()) > MAX_FEATURE:
                faults.append(f"a feature of {m!r} is beyond {MAX_FEATURE:.0e}")
        return faults

    @classmethod
    def read(cls, message: Message, counts: Mapping[str, int]) -> Tokens:
        """Return the tokens of a message that has no `faults`.

        Args:
            message: The message.
            counts: The number T of tokens of each modality, in column order.
        """
        texts, which = message.scalars["instructions"], message.tensors["asked/which"]
        assert isinstance(texts, tuple)
        features, present = {}, []
        for m, count in counts.items():
            tokens, places = message.tensors[f"tokens/{m}"], message.tensors[f"positions/{m}"]
            there = torch.zeros(len(which) * count, dtype=torch.bool)
            there[places.long()] = True
            present.append(there.view(-1, count))
            empty = torch.zeros(len(there), tokens.shape[1])
            read = empty.index_copy(0, places.long(), tokens)
            features[m] = read.view(len(which), count, tokens.shape[1])
        return cls(features, torch.cat(present, dim=1), tuple(texts[int(i)] for i in which))


@dataclass(frozen=True, kw_only=True)
class TokenAggregate(Aggregate):
    """The token features that the devices sent in a round.

    Attributes:
        messages: The messages of all devices, in their order.
    """

    messages: tuple[Message, ...]

    def tokens(self, counts: Mapping[str, int]) -> Tokens:
        """Return the samples of all devices; see `Tokens.read`."""
        return Tokens.joined([Tokens.read(message, counts) for message in self.messages])
