"""Texts of modalities as tokens in front of the instruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mlecs_lightning.functional import bytes_to_text
from mlecs_lightning.types import ModalitySpec

if TYPE_CHECKING:
    from mlecs_lightning.nn.texts import TextCoder

__all__ = ["ABSENT", "TextInput", "WordReader", "limits_of", "longest", "piece", "word_means"]

ABSENT = "nothing"
"""Said in place of the text of a modality that a sample lacks."""


class TextInput(nn.Identity):
    """Passes the bytes of a text on: each tower reads them with its own tokenizer."""

    out_features = 0


def piece(coder: TextCoder, name: str, text: str | None, limit: int) -> tuple[int, ...]:
    """Return the tokens "name: text" of one modality, with a line break.

    Name, text and line break are encoded on their own, so that the budget cuts the text only.

    Args:
        coder: The tokenizer.
        name: The modality.
        text: Its text; ``None`` if the sample lacks the modality.
        limit: Maximum number of tokens of the text.
    """
    said = coder.encode(ABSENT) if text is None else coder.encode(text)[:limit]
    return (*coder.encode(f"{name}:"), *said, *coder.encode("\n"))


class WordReader:
    """Reads the text modalities of a batch with the tokenizer of one language model.

    Batches hold UTF-8 bytes, as for all texts: they are tensors like any other input, and each
    model has another tokenizer. They are decoded here. Names as markers, plain words for an absent
    modality and their order (that of the columns) are our choice.
    """

    def __init__(self, coder: TextCoder, limits: Mapping[str, int]) -> None:
        """Set the modalities.

        Args:
            coder: The tokenizer.
            limits: For each modality that is read as tokens, how many of a text are read.
        """
        self.coder, self.limits = coder, dict(limits)

    def __call__(
        self, features: Mapping[str, Tensor], present: Tensor
    ) -> tuple[tuple[tuple[int, ...], ...], dict[str, list[tuple[int, ...]]]]:
        """Return the tokens of each sample, and those of each modality without its marker.

        A text that is not ``present`` is never decoded, whatever its bytes.

        Args:
            features: For each modality that is read as tokens (B, bytes); others are ignored.
            present: (B, K) bool, in the order of ``features``.
        """
        rows: list[list[int]] = [[] for _ in range(len(present))]
        words: dict[str, list[tuple[int, ...]]] = {}
        for column, (name, x) in enumerate(features.items()):
            if name not in self.limits:
                continue
            here = present[:, column].tolist()
            texts = iter(bytes_to_text(x[present[:, column]]))
            limit, words[name] = self.limits[name], []
            for row, is_here in zip(rows, here, strict=True):
                text = next(texts) if is_here else None
                row += piece(self.coder, name, text, limit)
                words[name].append(() if text is None else self.coder.encode(text)[:limit])
        return tuple(map(tuple, rows)), words


def longest(coder: TextCoder, limits: Mapping[str, int]) -> int:
    """Return the maximum number of tokens of text modalities, with their markers."""
    absent = len(coder.encode(ABSENT))
    return sum(
        len(coder.encode(f"{name}:")) + max(limit, absent) + len(coder.encode("\n"))
        for name, limit in limits.items()
    )


def limits_of(specs: Mapping[str, ModalitySpec]) -> dict[str, int]:
    """Return the token budget of each modality that is read as tokens."""
    return {name: spec.tokens for name, spec in specs.items() if spec.tokens}


def word_means(rows: Sequence[Sequence[int]], embedding: nn.Module) -> Tensor:
    """Return the mean (B, H) of the frozen word embeddings of each row's tokens, normalised.

    A row without tokens is zero. The normalisation has no parameters: embeddings of language models
    differ in scale by orders of magnitude. Our choice.

    Args:
        rows: Tokens of B texts.
        embedding: The word embeddings.
    """
    weight: Tensor = embedding.weight  # type: ignore[assignment]
    lengths = torch.tensor([len(row) for row in rows])
    flat = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    owner = torch.repeat_interleave(torch.arange(len(rows)), lengths).to(weight.device)
    with torch.no_grad():
        vectors = embedding(flat.to(weight.device)).float()
        sums = vectors.new_zeros(len(rows), vectors.shape[-1]).index_add_(0, owner, vectors)
        means = sums / lengths.clamp(min=1).to(sums).unsqueeze(-1)
        return nn.functional.layer_norm(means, means.shape[-1:])
