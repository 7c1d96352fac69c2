"""What the YAML says of a modality's files, and how what they hold is brought to that shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_type_hints

import numpy as np
import numpy.typing as npt
import torch

from mlecs_lightning.errors import ConfigurationError, FaultList
from mlecs_lightning.settings import value_faults
from mlecs_lightning.types import ModalityKind, ModalitySpec

__all__ = ["Declared", "DecodeError", "Decoded", "Raw", "fitted", "stretches"]

# For headers that lie about their rate. Points after a change of rate: 128 MiB in float32, half an
# hour in mono at 16 kHz.
_MAX_POINTS = 2**25
# Of the two rates without their common divisor: the filter between them has twenty points each.
_MAX_FACTOR = 2**17
# Above all sound cards, and what records bats.
_MAX_RATE = 1_000_000

Floats = npt.NDArray[np.float32]


class DecodeError(ValueError):
    """A file or an inline value is not what its modality declares; says what it is instead."""


@dataclass(frozen=True)
class Declared:
    """What the YAML says of a modality.

    Attributes:
        kind: ``image``, ``series``, ``vector`` or ``text``.
        shape: As in `ModalitySpec`: (channels, height, width), (channels, time), (features) or, for
            text, (bytes): a longer text is cut at its end.
        fit: How a series of another length is brought to the declared one. ``last`` keeps the last
            points, and a shorter series begins with copies of its first point. ``resample`` cuts it
            into equal stretches and takes the mean of each. Our choice, causal both: no point holds
            what came after it, and the last one is the newest, as in a window that a sensor has
            just delivered.
        rate: Points a second that sound is brought to; its own by default. The filter against
            aliasing looks ten points ahead, of the slower of the two rates.
        frames: A video is cut into as many equal stretches as the shape has channels, by three:
            the ``last`` frame of each, or their ``mean``.
        standardise: Whether channels are brought to zero mean and unit deviation; not for a
            pretrained encoder, which wants images in 0..1 and sound in -1..1. Text never is.
    """

    kind: ModalityKind
    shape: list[int]
    fit: Literal["last", "resample"] = "last"
    rate: int | None = None
    frames: Literal["last", "mean"] = "last"
    standardise: bool = True

    def __post_init__(self) -> None:
        """Check the shape, and that the options go with the kind."""
        faults = FaultList()
        faults.attempt(ModalitySpec, self.kind, tuple(self.shape))
        if any(size < 1 for size in self.shape):
            faults.append(f"shape must be made of numbers of at least 1, got {self.shape}")
        if self.kind != "series" and (self.fit != "last" or self.rate is not None):
            faults.append(f"fit and rate are of kind 'series' only, got kind {self.kind!r}")
        if self.kind != "image" and self.frames != "last":
            faults.append(f"frames is of kind 'image' only, got kind {self.kind!r}")
        if self.rate is not None and self.rate < 1:
            faults.append(f"rate must be at least 1, got {self.rate}")
        if self.rate is not None and self.rate > _MAX_RATE:
            faults.append(f"rate must be at most {_MAX_RATE:,}, got {self.rate:,}")
        faults.raise_any()

    @property
    def is_scaled(self) -> bool:
        """Whether channels are standardised."""
        return self.standardise and self.kind != "text"

    @property
    def spec(self) -> ModalitySpec:
        """The kind and the shape, for extractors."""
        return ModalitySpec(self.kind, tuple(self.shape))

    @classmethod
    def from_values(cls, values: object, *, key: str) -> Declared:
        """Build from what stands in a YAML file.

        Raises:
            ConfigurationError: If anything is wrong with it; all faults in one message.
        """
        known = list(get_type_hints(cls))
        if not isinstance(values, dict):
            raise ConfigurationError(f"{key}: expected {known}, got {values!r}")
        faults = FaultList(value_faults(cls, values, key=key))
        faults += [f"{key}: {k} is missing" for k in ("kind", "shape") if k not in values]
        faults.raise_any()
        try:
            return cls(**values)
        except ValueError as error:
            raise ConfigurationError(
                "\n".join(f"{key}: {line}" for line in str(error).splitlines())
            ) from error


class Decoded(NamedTuple):
    """One input of one sample.

    Attributes:
        values: float32 of the declared shape.
        source: Shape that the file had, with the frames of a video in front in place of channels.
        rate: Points a second of a sound file; 0 for all others.
    """

    values: Floats
    source: tuple[int, ...]
    rate: int = 0


class Raw(NamedTuple):
    """What a reader found, in the layout of the kind but of any size.

    Attributes:
        values: Numbers of any type.
        rate: As in `Decoded`.
        source: As in `Decoded`; that of ``values`` by default.
    """

    values: npt.NDArray[Any]
    rate: int = 0
    source: tuple[int, ...] | None = None


def fitted(raw: Raw, declared: Declared) -> Decoded:
    """Bring numbers to the declared shape.

    Images are resized, bilinear and over the whole area of what is made smaller. A series is cut or
    filled as `Declared.fit` says, sound first brought to the declared rate. A vector, the bytes of
    a text, and the number of channels must be as declared.

    Raises:
        DecodeError: If they cannot be; it says both shapes.
    """
    with np.errstate(over="ignore"):
        values = raw.values.astype(np.float32)
    source = raw.source or values.shape
    if not values.size:
        raise DecodeError("is empty")
    if not np.isfinite(values).all():
        raise DecodeError("holds a value that is not finite in float32")
    if declared.kind in ("vector", "text"):
        if values.shape != (declared.shape[0],):
            raise _unlike(values, declared, f"({declared.shape[0]},)")
        return Decoded(values, source)
    if values.ndim == len(declared.shape) - 1 and declared.shape[0] == 1:
        values = values[None]
    if values.ndim != len(declared.shape) or len(values) != declared.shape[0]:
        sides = "height, width" if declared.kind == "image" else "time"
        raise _unlike(values, declared, f"({declared.shape[0]} channels, {sides})")
    if declared.kind == "image":
        return Decoded(_resized(values, declared.shape[1], declared.shape[2]), source)
    if raw.rate and declared.rate and raw.rate != declared.rate:
        values = _at_rate(values, raw.rate, declared.rate)
    fit = _last if declared.fit == "last" else _stretch_means
    return Decoded(fit(values, declared.shape[1]), source, raw.rate)


def _unlike(values: Floats, declared: Declared, wanted: str) -> DecodeError:
    return DecodeError(f"has shape {values.shape}; kind {declared.kind!r} declares {wanted}")


def _resized(values: Floats, height: int, width: int) -> Floats:
    """Bilinear, over the whole area of what is made smaller, so that no detail turns to noise."""
    if values.shape[1:] == (height, width):
        return values
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None], (height, width), mode="bilinear", antialias=True
    )
    return np.asarray(resized[0].numpy(), np.float32)


def _last(values: Floats, length: int) -> Floats:
    kept = values[:, -length:]
    return np.pad(kept, ((0, 0), (length - kept.shape[1], 0)), mode="edge")


def stretches(count: int, parts: int) -> list[tuple[int, int]]:
    """Cut a series into equal stretches; each ends with the newest point that is complete by then.

    Args:
        count: Points of the series.
        parts: Number of stretches. With fewer points than these, points are repeated.

    Returns:
        Begin and end of each, the end excluded.

    Example:
        >>> stretches(5, 2), stretches(2, 4)
        ([(0, 2), (2, 5)], [(0, 1), (0, 1), (0, 1), (1, 2)])
    """
    ends = [max(1, k * count // parts) for k in range(1, parts + 1)]
    return [(min(k * count // parts, end - 1), end) for k, end in enumerate(ends)]


def _stretch_means(values: Floats, length: int) -> Floats:
    if values.shape[1] == length:
        return values
    begin, end = np.array(stretches(values.shape[1], length)).T
    sums = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1, dtype=np.float64)
    return np.asarray((sums[:, end] - sums[:, begin]) / (end - begin), np.float32)


def _at_rate(values: Floats, rate: int, wanted: int) -> Floats:
    common = math.gcd(rate, wanted)
    points = values.size * wanted // rate
    if points > _MAX_POINTS:
        raise DecodeError(
            f"is a sound of {rate:,} points a second by its header, and would have {points:,} at "
            f"the declared rate of {wanted:,}, at most {_MAX_POINTS:,} are made: correct its "
            "header, cut it, or lower `rate`"
        )
    if max(rate, wanted) // common > _MAX_FACTOR:
        raise DecodeError(
            f"is a sound of {rate:,} points a second by its header, and {rate:,} to {wanted:,} is "
            f"{rate // common:,} to {wanted // common:,}, with a filter that is too long: correct "
            "its header, or declare a `rate` that has a larger divisor in common with it"
        )
    from scipy.signal import resample_poly

    resampled = resample_poly(values, wanted // common, rate // common, axis=1)
    return np.asarray(resampled, np.float32)
