"""The declared form of a modality, and how decoded values are brought to its shape."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, get_type_hints

import numpy as np
import numpy.typing as npt
import torch

from mlecs_lightning.data.decoding.csv_form import CsvForm
from mlecs_lightning.data.decoding.features import Features
from mlecs_lightning.errors import ConfigurationError, FaultList
from mlecs_lightning.extras import Need, require
from mlecs_lightning.settings import value_faults
from mlecs_lightning.types import ModalityKind, ModalitySpec

__all__ = ["Declared", "DecodeError", "Decoded", "Raw", "fitted", "segments"]

# The next two guard against headers with a wrong rate. Samples after resampling: 128 MiB in
# float32, half an hour in mono at 16 kHz.
_MAX_SAMPLES = 2**25
# Numerator and denominator of the reduced ratio of two rates; the filter has 20 taps for each unit.
_MAX_FACTOR = 2**17
# In Hz: more than any sound card, or any recorder of bats.
_MAX_RATE = 1_000_000

Floats = npt.NDArray[np.float32]


class DecodeError(ValueError):
    """A file or an inline value does not fit the declared form of its modality."""


@dataclass(frozen=True)
class Declared:
    """The form of a modality, as declared in the YAML.

    Attributes:
        kind: ``image``, ``series``, ``vector`` or ``text``.
        shape: As in `ModalitySpec`: (channels, height, width), (channels, time), (features) or, for
            text, (bytes); a longer text is cut off at the end. Of a series with ``features`` it is
            the shape of the signal; `spec` has that of the features.
        fit: How a series is brought to the declared length. ``last`` keeps the last points, and
            pads a shorter series with copies of its first point. ``resample`` cuts it into equal
            segments and takes the mean of each. Both are causal (our choice): no point depends on
            later ones, and the last point is the newest, as in a window from a live sensor. With
            ``features``, it is their windows that ``resample`` takes the means of.
        rate: Sampling rate in Hz to resample sound to; its own by default. The anti-aliasing filter
            looks ten samples ahead, at the slower of the two rates. Files without a rate of their
            own, such as csv, are taken to have this one.
        frames: A video is cut into equal segments, one for every three channels of the shape; each
            becomes its ``last`` frame or the ``mean`` of its frames.
        standardise: Whether channels are scaled to zero mean and unit deviation. Turn it off for a
            pretrained encoder, which expects images in [0, 1] and sound in [-1, 1]. Text is never
            scaled.
        features: What a model reads of a series in place of its points: see `Features`.
        csv: How csv files are written, where that is not plain: see `CsvForm`.
        as_: ``as`` in the YAML, for text only. ``vector``: an extractor turns the text into one
            vector. ``tokens``: the language model reads its words, with its own tokenizer.
        max_tokens: With ``as: tokens``, how many tokens of a text are read; the rest is cut off.
    """

    kind: ModalityKind
    shape: list[int]
    fit: Literal["last", "resample"] = "last"
    rate: int | None = None
    frames: Literal["last", "mean"] = "last"
    standardise: bool = True
    features: Features | None = None
    csv: CsvForm | None = None
    as_: Literal["vector", "tokens"] = "vector"
    max_tokens: int = 0

    def __post_init__(self) -> None:
        """Check the shape, and that the options fit the kind.

        Raises:
            ValueError: If they do not; one message holds all faults.
        """
        faults = FaultList()
        faults.attempt(ModalitySpec, self.kind, tuple(self.shape))
        if min(self.shape, default=1) < 1:
            faults.append(f"every size in shape must be at least 1, got {self.shape}")
        if self.kind != "series" and (self.fit != "last" or self.rate is not None):
            faults.append(f"fit and rate are for kind 'series' only, got kind {self.kind!r}")
        if self.kind != "image" and self.frames != "last":
            faults.append(f"frames is for kind 'image' only, got kind {self.kind!r}")
        if self.rate is not None and not 1 <= self.rate <= _MAX_RATE:
            faults.append(f"rate must be from 1 to {_MAX_RATE:,}, got {self.rate:,}")
        if self.csv is not None:
            faults += self.csv.faults(self.kind, channels=self.shape[0] if self.shape else 0)
        if self.features is not None and not faults:
            faults += self._feature_faults(self.features)
        faults += self._token_faults()
        faults.raise_any()

    def _feature_faults(self, features: Features) -> list[str]:
        if self.kind != "series":
            return [f"features are for kind 'series' only, got kind {self.kind!r}"]
        if self.rate is None:
            return [
                "features need `rate`, the points per second: sound is resampled to it, and other "
                "files must have it"
            ]
        return features.faults(points=self.shape[1], rate=self.rate)

    def _token_faults(self) -> list[str]:
        """Return what is wrong with ``as`` and ``max_tokens``."""
        if self.as_ == "tokens" and self.kind != "text":
            return [f"as: tokens is for kind 'text' only, got kind {self.kind!r}"]
        if self.as_ == "tokens" and self.max_tokens < 1:
            return [
                "as: tokens needs max_tokens, the number of tokens of a text that the language "
                f"model reads, at least 1; got {self.max_tokens}"
            ]
        if self.as_ == "vector" and self.max_tokens:
            return [f"max_tokens is for as: tokens only, got max_tokens {self.max_tokens}"]
        return []

    @property
    def is_scaled(self) -> bool:
        """Whether channels are standardised."""
        return self.standardise and self.kind != "text"

    @property
    def spec(self) -> ModalitySpec:
        """Kind and shape of what a model reads, for the extractor."""
        if self.features is None or self.rate is None:
            return ModalitySpec(self.kind, tuple(self.shape), self.max_tokens)
        channels, points = self.shape
        return ModalitySpec(self.kind, self.features.shape(channels, points, self.rate))

    def to_dict(self) -> dict[str, Any]:
        """Return the values under their YAML keys; those of tokens only where there are any."""
        values = asdict(self)
        form, tokens = values.pop("as_"), values.pop("max_tokens")
        return values | ({"as": form, "max_tokens": tokens} if form == "tokens" else {})

    @classmethod
    def of(cls, spec: ModalitySpec) -> Declared:
        """Return the form of inputs that already look like those of a data set."""
        form: Literal["vector", "tokens"] = "tokens" if spec.tokens else "vector"
        return cls(spec.kind, list(spec.shape), standardise=False, as_=form, max_tokens=spec.tokens)

    @classmethod
    def from_values(cls, values: object, *, key: str) -> Declared:
        """Build from the values in a YAML file.

        Args:
            values: The values.
            key: Their YAML key, for error messages.

        Raises:
            ConfigurationError: If they are invalid; one message holds all faults.
        """
        known = [name.rstrip("_") for name in get_type_hints(cls)]
        if not isinstance(values, dict):
            raise ConfigurationError(f"{key}: expected {known}, got {values!r}")
        # `as` is a word of Python, so the field has another name.
        values = {("as_" if name == "as" else name): value for name, value in values.items()}
        faults = FaultList()
        given: dict[str, Any] = {
            name: _part(_PARTS[name], value, f"{key}.{name}", faults)
            if name in _PARTS and isinstance(value, dict)
            else value
            for name, value in values.items()
        }
        faults += [
            line.replace(f"{key}.as_:", f"{key}.as:").replace("'as_'", "'as'")
            for line in value_faults(cls, given, key=key)
        ]
        faults += _missing(cls, given, key=key)
        faults.raise_any()
        try:
            return cls(**given)
        except ValueError as error:
            raise ConfigurationError(
                "\n".join(f"{key}: {line}" for line in str(error).splitlines())
            ) from error


_PARTS: dict[str, type[Features | CsvForm]] = {"features": Features, "csv": CsvForm}
"""Options that have keys of their own."""


def _part(
    part: type[Features | CsvForm], values: Mapping[str, Any], key: str, faults: FaultList
) -> Features | CsvForm | None:
    """Build an option that has keys of its own; what is wrong is added to ``faults``."""
    wrong = value_faults(part, values, key=key) + _missing(part, values, key=key)
    faults += wrong
    return None if wrong else part(**values)


def _missing(kind: Any, values: Mapping[str, Any], *, key: str) -> list[str]:  # noqa: ANN401 - a dataclass
    needed = [field.name for field in fields(kind) if field.default is MISSING]
    return [f"{key}: {name} is missing" for name in needed if name not in values]


class Decoded(NamedTuple):
    """One input of one sample in the declared shape.

    Attributes:
        values: float32 of the declared shape.
        source: Shape of the content of the file; a video has frames in place of channels.
        rate: Sampling rate of a sound file in Hz; 0 for all others.
        changes: What was changed about its channels, one phrase for each change.
    """

    values: Floats
    source: tuple[int, ...]
    rate: int = 0
    changes: tuple[str, ...] = ()


class Raw(NamedTuple):
    """The content of a file, in the layout of its kind but of any size.

    Attributes:
        values: Numbers of any type.
        rate: As in `Decoded`.
        source: As in `Decoded`; that of ``values`` by default.
        changes: As in `Decoded`.
    """

    values: npt.NDArray[Any]
    rate: int = 0
    source: tuple[int, ...] | None = None
    changes: tuple[str, ...] = ()


def fitted(raw: Raw, declared: Declared) -> Decoded:
    """Bring values to the declared shape.

    Images are resized bilinearly with antialiasing. Sound is resampled to the declared rate, and
    any series is brought to the declared length as `Declared.fit` says. The length of a vector or
    text and the number of channels must be as declared.

    Raises:
        DecodeError: If values are missing or not finite, or their shape does not fit; the message
            has both shapes.
    """
    with np.errstate(over="ignore"):
        values = raw.values.astype(np.float32)
    source = raw.source or values.shape
    if not values.size:
        raise DecodeError("is empty")
    if not np.isfinite(values).all():
        raise DecodeError("holds a value that is not finite in float32")
    match declared.kind:
        case "image":
            fitting = _resized(_channels(values, declared), declared.shape[1], declared.shape[2])
        case "series":
            fitting = _series(_channels(values, declared), raw.rate, declared)
        case _:
            if values.shape != (declared.shape[0],):
                raise _wrong_shape(values, declared, f"({declared.shape[0]},)")
            fitting = values
    return Decoded(fitting, source, raw.rate, raw.changes)


def _channels(values: Floats, declared: Declared) -> Floats:
    """Check the number of channels, and add the dimension of a single one where it is missing.

    Raises:
        DecodeError: If dimensions or channels differ from the declared ones.
    """
    if values.ndim == len(declared.shape) - 1 and declared.shape[0] == 1:
        values = values[None]
    if values.ndim != len(declared.shape) or len(values) != declared.shape[0]:
        sides = "height, width" if declared.kind == "image" else "time"
        raise _wrong_shape(values, declared, f"({declared.shape[0]} channels, {sides})")
    return values


def _wrong_shape(values: Floats, declared: Declared, wanted: str) -> DecodeError:
    return DecodeError(f"has shape {values.shape}, but kind {declared.kind!r} declares {wanted}")


def _resized(values: Floats, height: int, width: int) -> Floats:
    if values.shape[1:] == (height, width):
        return values
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None], (height, width), mode="bilinear", antialias=True
    )
    return np.asarray(resized[0].numpy(), np.float32)


def _series(values: Floats, rate: int, declared: Declared) -> Floats:
    if rate and declared.rate and rate != declared.rate:
        values = _at_rate(values, rate, declared.rate)
    if declared.features is not None and declared.rate is not None:
        return _spectrogram(values, declared, declared.features, declared.rate)
    if declared.fit == "last":
        return _last(values, declared.shape[1])
    return _segment_means(values, declared.shape[1])


def _spectrogram(values: Floats, declared: Declared, features: Features, rate: int) -> Floats:
    window, _ = features.points(rate)
    count = values.shape[1]
    if count < window:
        raise DecodeError(
            f"has {count:,} points, that is {count / rate:g} s at {rate:,} Hz, but a window of "
            f"features has {features.window:g} s: leave it out, or shorten features.window"
        )
    if declared.fit == "last":
        return features.of(_last(values, declared.shape[1]), rate)
    return _segment_means(features.of(values, rate), declared.spec.shape[1])


def _last(values: Floats, length: int) -> Floats:
    kept = values[:, -length:]
    return np.pad(kept, ((0, 0), (length - kept.shape[1], 0)), mode="edge")


def segments(count: int, parts: int) -> list[tuple[int, int]]:
    """Cut a series into segments of equal length, rounded so that none reaches beyond its end.

    Args:
        count: Number of points of the series.
        parts: Number of segments. If there are fewer points than segments, points are repeated.

    Returns:
        Begin and end of each segment, the end excluded.

    Example:
        >>> segments(5, 2), segments(2, 4)
        ([(0, 2), (2, 5)], [(0, 1), (0, 1), (0, 1), (1, 2)])
    """
    ends = [max(1, k * count // parts) for k in range(1, parts + 1)]
    return [(min(k * count // parts, end - 1), end) for k, end in enumerate(ends)]


def _segment_means(values: Floats, length: int) -> Floats:
    if values.shape[1] == length:
        return values
    begin, end = np.array(segments(values.shape[1], length)).T
    sums = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1, dtype=np.float64)
    return np.asarray((sums[:, end] - sums[:, begin]) / (end - begin), np.float32)


def _at_rate(values: Floats, rate: int, wanted: int) -> Floats:
    common = math.gcd(rate, wanted)
    samples = values.size * wanted // rate
    if samples > _MAX_SAMPLES:
        raise DecodeError(
            f"is sound at {rate:,} Hz by its header, and would have {samples:,} samples at the "
            f"declared rate of {wanted:,} Hz, but at most {_MAX_SAMPLES:,} are allowed: correct "
            "its header, cut it, or lower `rate`"
        )
    if max(rate, wanted) // common > _MAX_FACTOR:
        raise DecodeError(
            f"is sound at {rate:,} Hz by its header, and {rate:,} to {wanted:,} Hz is "
            f"{rate // common:,} to {wanted // common:,}, which needs too long a filter: correct "
            "its header, or declare a `rate` with a larger common divisor"
        )
    require(
        Need(
            f"sound at {rate:,} Hz, of which {wanted:,} Hz is to be made,",
            "audio",
            ("scipy",),
            otherwise=f"convert it: ffmpeg -i OLD -ar {wanted} NEW.wav",
        )
    )
    from scipy.signal import resample_poly

    resampled = resample_poly(values, wanted // common, rate // common, axis=1)
    return np.asarray(resampled, np.float32)
