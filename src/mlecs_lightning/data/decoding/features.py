"""Spectrograms of sound and of other fast series."""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Features"]

Floats = npt.NDArray[np.float32]

# In points: a shorter window has no spectrum worth the name.
_SHORTEST = 4


@dataclass(frozen=True)
class Features:
    """How a series is turned into a spectrogram, window by window.

    Windows are of Hann's form, and none reaches beyond the series: the last point is the newest
    that any of them sees. Values are natural logarithms of power, at least ln(1e-10).

    Attributes:
        kind: ``log_mel``, bands of equal width on the mel scale (that of librosa, which is linear
            below 1 kHz); or ``spectrogram``, all frequencies of the window: half its points and
            one.
        window: Duration of a window in seconds.
        hop: Time from one window to the next in seconds, at most ``window``.
        bands: Number of mel bands.
    """

    kind: Literal["log_mel", "spectrogram"]
    window: float = 0.025
    hop: float = 0.01
    bands: int | None = None

    def faults(self, *, points: int, rate: int) -> list[str]:
        """Return what does not fit a series.

        Args:
            points: The declared length of the series.
            rate: Its sampling rate in Hz.
        """
        times = {"window": self.window, "hop": self.hop}
        faults = [
            f"features.{name} must be a positive number of seconds, got {value:g}"
            for name, value in times.items()
            if not 0 < value < math.inf
        ]
        if faults:
            return faults
        window, hop = self.points(rate)
        if window < _SHORTEST:
            faults.append(
                f"features.window is {self.window:g} s, which is {window} points at {rate:,} Hz; "
                f"it needs at least {_SHORTEST}, that is {_SHORTEST / rate:g} s"
            )
        if window > points:
            faults.append(
                f"features.window is {self.window:g} s, but the declared shape has {points:,} "
                f"points, that is {points / rate:g} s at {rate:,} Hz: shorten the window or "
                "lengthen the series"
            )
        if not 1 <= hop <= window:
            faults.append(
                f"features.hop must be from {1 / rate:g} s (one point) to the window's "
                f"{self.window:g} s, got {self.hop:g}"
            )
        return faults or self._band_faults(rate)

    def _band_faults(self, rate: int) -> list[str]:
        if self.kind == "spectrogram":
            if self.bands is None:
                return []
            return ["features.bands is for kind 'log_mel' only; 'spectrogram' has all frequencies"]
        if self._bands < 1:
            return [f"features.bands must be at least 1, got {self.bands}"]
        most = self._most_bands(rate)
        if self._bands <= most:
            return []
        return [
            f"features.bands is {self._bands}, but a window of {self.window:g} s at {rate:,} Hz "
            f"tells at most {most} mel bands apart: lower bands, or lengthen the window"
        ]

    @property
    def _bands(self) -> int:
        return 40 if self.bands is None else self.bands

    def _most_bands(self, rate: int) -> int:
        """Return how many bands at most have frequencies of their own, up to those wanted."""
        window, _ = self.points(rate)
        most = min(self._bands, window // 2)
        while most > 1 and not _mel_filters(self, rate, most).any(axis=0).all():
            most -= 1
        return most

    def points(self, rate: int) -> tuple[int, int]:
        """Return window and hop in points, at a sampling rate in Hz."""
        return round(self.window * rate), round(self.hop * rate)

    def shape(self, channels: int, points: int, rate: int) -> tuple[int, int]:
        """Return the shape of a series' spectrogram: (channels * bands, windows)."""
        window, hop = self.points(rate)
        bands = self._bands if self.kind == "log_mel" else window // 2 + 1
        return channels * bands, 1 + (points - window) // hop

    def of(self, values: Floats, rate: int) -> Floats:
        """Compute the spectrogram.

        Args:
            values: (channels, time), at least a window long.
            rate: Its sampling rate in Hz.

        Returns:
            (channels * bands, windows); the bands of the first channel come first.
        """
        from transformers.audio_utils import spectrogram, window_function

        window, hop = self.points(rate)
        is_mel = self.kind == "log_mel"
        parts = [
            spectrogram(
                channel,
                window_function(window, "hann"),
                frame_length=window,
                hop_length=hop,
                fft_length=_transform_length(window) if is_mel else window,
                power=2.0,
                center=False,
                mel_filters=_mel_filters(self, rate, self._bands) if is_mel else None,
            )
            for channel in values
        ]
        power = np.maximum(np.concatenate(parts), 1e-10)
        return np.asarray(np.log(power), np.float32)


def _transform_length(window: int) -> int:
    """Return the next power of two, as is usual for mel bands."""
    return int(2 ** np.ceil(np.log2(window)))


@functools.lru_cache(maxsize=256)
def _mel_filters(features: Features, rate: int, bands: int) -> npt.NDArray[np.float64]:
    """Return the weights (frequencies, bands)."""
    from transformers.audio_utils import mel_filter_bank

    window, _ = features.points(rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty bands; `faults` reports them
        filters: npt.NDArray[np.float64] = mel_filter_bank(
            num_frequency_bins=_transform_length(window) // 2 + 1,
            num_mel_filters=bands,
            min_frequency=0.0,
            max_frequency=rate / 2,
            sampling_rate=rate,
            norm="slaney",
            mel_scale="slaney",
        )
    return filters
