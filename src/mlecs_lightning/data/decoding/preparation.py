"""Turns an input of a modality into what a model reads, in training and in deployment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlecs_lightning.data.decoding.files import decode, decode_array, decode_inline, decode_text
from mlecs_lightning.data.decoding.shapes import Declared, Decoded
from mlecs_lightning.storage.paths import expanded

__all__ = ["Preparation"]


@dataclass(frozen=True)
class Preparation:
    """The form of a modality, and the constants that standardise its channels.

    Checkpoints store it, so that new inputs are prepared as in training.

    Attributes:
        declared: Kind and shape, and how a file is brought to them.
        mean: Mean of each channel over the public samples; ``None`` leaves the values as they are.
        deviation: The divisor of each channel: see `of`.
    """

    declared: Declared
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None

    @classmethod
    def of(cls, declared: Declared, column: Tensor, public: Tensor) -> Preparation:
        """Compute mean and standard deviation of the public samples, which everyone may know.

        The deviation of a channel is at least a tenth of the mean deviation of all channels:
        otherwise a channel that is nearly constant in the public samples would have huge values in
        the others. Our choice.

        Args:
            declared: The form.
            column: (N, channels, ...) or (N, features).
            public: (N,) bool, the public samples that have this modality, at least one.
        """
        others = [0, *range(2, column.dim())]
        known = column[public].double()
        mean, deviation = known.mean(others), known.std(others, correction=0)
        floor = 0.1 * deviation.mean()
        scale = torch.where(deviation > floor, deviation, floor if floor > 0 else 1.0)
        return cls(declared, tuple(mean.tolist()), tuple(scale.tolist()))

    def scaled(self, column: Tensor, present: Tensor) -> Tensor:
        """Standardise each channel; rows that are not ``present`` become zero.

        Args:
            column: (N, channels, ...) or (N, features), inputs of the declared shape.
            present: (N,) bool.
        """
        if self.mean is None or self.deviation is None:
            return column
        shape = (1, -1, *[1] * (column.dim() - 2))
        mean, scale = (
            torch.tensor(values, dtype=torch.float64).view(shape)
            for values in (self.mean, self.deviation)
        )
        present = present.view(-1, *[1] * (column.dim() - 1))
        return torch.where(present, (column - mean) / scale, 0.0).float()

    def read(self, value: object) -> Tensor:
        """Prepare one input.

        Args:
            value: One of: the path of a file that `Manifest` can read (for text only as a `Path`,
                since a `str` is the text itself); an array or tensor in the layout of such a file
                (see `decode_array`); a number or nested lists of numbers.

        Returns:
            A tensor of the declared shape.

        Raises:
            DecodeError: If the value cannot be brought to the declared form.
            OSError: If the file cannot be opened.
            ImportError: If a package that the file needs is missing; the message names the extra.
        """
        values = torch.from_numpy(self._decoded(value).values)[None]
        return self.scaled(values, torch.ones(1, dtype=torch.bool))[0]

    def _decoded(self, value: object) -> Decoded:
        if isinstance(value, str) and self.declared.kind == "text":
            return decode_text(value, self.declared)
        if isinstance(value, str | Path):
            path = expanded(value)
            return decode(path.read_bytes(), path.suffix.lower(), self.declared)
        if isinstance(value, Tensor):
            value = value.detach().cpu().numpy()
        if isinstance(value, np.ndarray):
            return decode_array(value, self.declared)
        return decode_inline(value, self.declared)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers, for JSON and for weights-only checkpoints."""
        constants = {"mean": self.mean, "deviation": self.deviation}
        known = {name: list(values) for name, values in constants.items() if values is not None}
        return self.declared.to_dict() | known

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, key: str) -> Preparation:
        """Build from the result of `to_dict`.

        Args:
            values: The values.
            key: Their name in error messages.
        """
        constants = {n: tuple(values[n]) for n in ("mean", "deviation") if n in values}
        declared = {n: value for n, value in values.items() if n not in ("mean", "deviation")}
        return cls(Declared.from_values(declared, key=key), **constants)
