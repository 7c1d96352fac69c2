"""How one input of a modality becomes what a model reads: in training, and long after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
    """The form of a modality, and the constants that its channels are scaled by.

    A checkpoint holds it, so that new inputs are prepared as those of the training were.

    Attributes:
        declared: Kind and shape, and how a file is brought to them.
        mean: Mean of each channel over the public samples; ``None`` leaves the values as they are.
        deviation: What each channel is divided by.
    """

    declared: Declared
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None

    @classmethod
    def of(cls, declared: Declared, column: Tensor, public: Tensor) -> Preparation:
        """Take the constants from the public samples: these are what everybody may know.

        A channel that hardly varies there keeps a tenth of the mean deviation: its rare values
        elsewhere would be hundreds of deviations away. Our choice.

        Args:
            declared: The form.
            column: (N, channels, ...) or (N, features).
            public: (N,) bool, the present samples that mean and deviation are taken of, at least
                one.
        """
        others = [0, *range(2, column.dim())]
        known = column[public].double()
        mean, deviation = known.mean(others), known.std(others, correction=0)
        floor = 0.1 * deviation.mean()
        scale = torch.where(deviation > floor, deviation, floor if floor > 0 else 1.0)
        return cls(declared, tuple(mean.tolist()), tuple(scale.tolist()))

    def scaled(self, column: Tensor, present: Tensor) -> Tensor:
        """Scale each channel of (N, channels, ...); the rows that are not ``present`` become zero.

        Args:
            column: Inputs of the declared shape.
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
            value: Path of a file of a kind that `Manifest` reads (of a text a `Path`: a `str` is
                the text itself); an array or tensor of its layout
                (an image of whole numbers of 8 or 16 bits becomes 0..1, as a file does); or a
                number or nested lists of numbers.

        Returns:
            A tensor of the declared shape.

        Raises:
            DecodeError: If it is nothing of the kind.
            OSError: If there is no such file.
            ImportError: If a package is missing that the file needs; it names the extra.
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
        """Return plain dicts, lists and numbers: what JSON and a weights-only load may hold."""
        constants = {"mean": self.mean, "deviation": self.deviation}
        known = {name: list(values) for name, values in constants.items() if values is not None}
        return asdict(self.declared) | known

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, key: str) -> Preparation:
        """Build from what `to_dict` returned.

        Args:
            values: The values.
            key: What to call them in an error message.
        """
        constants = {n: tuple(values[n]) for n in ("mean", "deviation") if n in values}
        declared = {n: value for n, value in values.items() if n not in ("mean", "deviation")}
        return cls(Declared.from_values(declared, key=key), **constants)
