"""Answers to samples, and their form in a message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mlecs_lightning.wire.messages import Message, Scalar, ScalarField, Schema, TensorField

__all__ = ["MAX_TEXTS", "Labels"]

MAX_TEXTS = 2**15 - 1
"""Maximum number of distinct texts in a message: an index takes 16 bits. Our choice."""


class Labels(NamedTuple):
    """One party's answers to N samples, in the order of a table.

    In a message they are a table of the distinct texts, and for each sample an index into it
    (int16) and a confidence (float16): 4 bytes a sample. Answers to public samples repeat, since
    targets do.

    Attributes:
        texts: Length N; empty where there is no answer.
        confidence: (N,) float32 in 0..1; 0 where there is no answer.
    """

    texts: tuple[str, ...]
    confidence: Tensor

    @classmethod
    def none(cls) -> Labels:
        """Return answers to no samples."""
        return cls((), torch.zeros(0))

    def __add__(self, more: Labels) -> Labels:  # type: ignore[override]
        """Return these answers and then those to other samples."""
        return Labels(self.texts + more.texts, torch.cat([self.confidence, more.confidence]))

    def split(self, count: int) -> tuple[Labels, Labels]:
        """Return the answers to the first ``count`` samples, and those to the others."""
        first = Labels(self.texts[:count], self.confidence[:count])
        return first, Labels(self.texts[count:], self.confidence[count:])

    def above(self, threshold: float) -> Labels:
        """Return the answers whose confidence reaches a threshold; the others are left empty."""
        return self.where((self.confidence >= threshold).tolist())

    def where(self, kept: Iterable[bool]) -> Labels:
        """Return the answers that are kept; the others are left empty."""
        texts = tuple(text if keep else "" for text, keep in zip(self.texts, kept, strict=True))
        spoken = torch.tensor([bool(text) for text in texts], dtype=torch.bool)
        return Labels(texts, torch.where(spoken, self.confidence, 0.0))

    def by_id(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the answers that are not empty, by sample id.

        Args:
            ids: Those of the N samples.
        """
        return {i: text for i, text in zip(ids, self.texts, strict=True) if text}

    # In a message ---------------------------------------------------------------------------

    @staticmethod
    def schema() -> Schema:
        """Return the schema of answers, which is the component ``answers`` of a message."""
        return Schema(
            {
                "answers/index": TensorField((None,), torch.int16),
                "answers/confidence": TensorField((None,), torch.float16),
            },
            {"answers": ScalarField(tuple)},
        )

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Scalar]]:
        """Return these answers as tensors and scalars of a message.

        A text beyond the first `MAX_TEXTS` distinct ones is left out.
        """
        table = tuple(dict.fromkeys(text for text in self.texts if text))[:MAX_TEXTS]
        row = {text: n for n, text in enumerate(table)}
        index = torch.tensor([row.get(text, -1) for text in self.texts], dtype=torch.int16)
        tensors = {"answers/index": index, "answers/confidence": self.confidence.half()}
        return tensors, {"answers": table}

    @classmethod
    def of(cls, message: Message) -> Labels:
        """Read the answers of a message in which `faults` finds nothing wrong."""
        table = message.scalars["answers"]
        assert isinstance(table, tuple)
        index = message.tensors["answers/index"].tolist()
        texts = tuple(table[n] if n >= 0 else "" for n in index)
        return cls(texts, message.tensors["answers/confidence"].float())

    @staticmethod
    def faults(message: Message, *, samples: int) -> list[str]:
        """Return what is wrong with the answers of a message that fits the schema.

        Args:
            message: The message.
            samples: Expected number of samples.
        """
        table = message.scalars["answers"]
        assert isinstance(table, tuple)
        index = message.tensors["answers/index"]
        confidence = message.tensors["answers/confidence"]
        faults = []
        if len(index) != samples or len(confidence) != samples:
            faults.append(
                f"{len(index)} answers with {len(confidence)} confidences, expected {samples}"
            )
        if len(set(table)) < len(table) or not all(table):
            faults.append("the table of answers holds a text twice, or an empty one")
        if len(index) and not (index.amin() >= -1 and index.amax() < len(table)):
            faults.append(f"an index of an answer is outside of [-1, {len(table)})")
        if len(confidence) and not (confidence.amin() >= 0 and confidence.amax() <= 1):
            faults.append("a confidence is outside of [0, 1]")
        return faults


def distinct(votes: Iterable[Labels]) -> list[str]:
    """Return all distinct texts, sorted."""
    return sorted({text for vote in votes for text in vote.texts if text})
