"""Causal windows of a UR Fall recording: only what is known when the labelled frame is taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlecs_lightning.data.urfall.files import DEPTH_FEATURES, FRAME_MS, Recording
from mlecs_lightning.data.urfall.video import FRAME_SIZE
from mlecs_lightning.types import ModalitySpec

__all__ = ["MODALITIES", "Windows", "cut_windows", "median_background"]

# Points per window, our choice: the slowest accelerometers record at 33 Hz, the depth features
# change slowly, and three frames are the fewest that show a change of speed.
_ACC_POINTS = 32
_DEPTH_POINTS = 8
_RGB_FRAMES = 3
# Three frames of the video: after a longer gap, the accelerometer counts as stopped.
_ACC_GAP_MS = 100.0

MODALITIES = {
    "acc": ModalitySpec("series", (4, _ACC_POINTS)),
    "depth": ModalitySpec("series", (len(DEPTH_FEATURES), _DEPTH_POINTS)),
    "rgb": ModalitySpec("image", (3 * _RGB_FRAMES, *FRAME_SIZE)),
}


@dataclass(frozen=True)
class Windows:
    """n windows of one recording.

    Attributes:
        frame: (n,) int64 number of the labelled frame at the end of each window.
        label: (n,) int64 class of that frame.
        inputs: (n, channels, ...) float32 of each modality, in the units of the files.
    """

    frame: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    inputs: dict[str, npt.NDArray[np.float32]]


def cut_windows(recording: Recording, *, seconds: float, stride: int) -> Windows:
    """Cut windows that end at a labelled frame and contain nothing later.

    "Falling" is defined as the 30 frames before the impact, so a window that reached beyond its
    frame would show the impact, and thereby the label.

    A window is kept if every point of its accelerometer grid has a sample within 100 ms that is not
    later than the end of the window. All others are left out, for all modalities, so that every
    sample is complete: those in the first second of a recording, and those where the sensor had
    stopped.

    Args:
        recording: The recording.
        seconds: Length of a window in seconds.
        stride: Keep every ``stride``-th of these windows.

    Returns:
        Windows with ``acc`` (n, 4, 32), interpolated between samples and constant after the last
        one; ``depth`` (n, 8, 8), from the nearest labelled frame; and, if the video was read,
        ``rgb`` (n, 9, 24, 32), three frames of three colours each, the oldest first.
    """
    grid = _grid(recording.frame_ms, seconds, _ACC_POINTS)
    rows = np.flatnonzero(_is_sampled(recording, grid))[::stride]
    inputs = {
        "acc": _acc(recording, rows, grid[rows]),
        "depth": _depth(recording, _grid(recording.frame_ms[rows], seconds, _DEPTH_POINTS)),
    }
    if recording.video is not None:
        inputs["rgb"] = _rgb(recording.video, recording.frame[rows], seconds)
    return Windows(recording.frame[rows], recording.label[rows], inputs)


def median_background(video: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the median of a video in the layout of a window's ``rgb``, (9, 24, 32) float32.

    Without it, a model learns the room: with one scene left out, the macro-F1 of a random forest on
    RGB is 0.24, and 0.42 after the background is subtracted. The background belongs to the fixed
    camera and not to a window. It is the only quantity that also uses later frames, because the
    recordings are too short to learn the room first, as an installed camera would.

    Args:
        video: (F, 24, 32, 3) uint8 frames of the whole recording.
    """
    median = np.median(video, axis=0).astype(np.float32)
    return np.tile(median.transpose(2, 0, 1), (_RGB_FRAMES, 1, 1))


def _grid(ends: npt.NDArray[np.float64], seconds: float, points: int) -> npt.NDArray[np.float64]:
    """Return (n, points) instants in ms, evenly spaced, the last one at the end of the window."""
    before = 1000 * seconds * (1 - np.arange(1, points + 1) / points)
    grid: npt.NDArray[np.float64] = ends[:, None] - before
    return grid


def _is_sampled(recording: Recording, grid: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return (N,) whether all instants of a window are close to an accelerometer sample."""
    times = np.concatenate([[-np.inf], recording.acc_ms, [np.inf]])
    after = np.searchsorted(times, grid, side="right")
    known = times[after] <= recording.frame_ms[:, None]
    gap = np.minimum(grid - times[after - 1], np.where(known, times[after] - grid, np.inf))
    sampled: npt.NDArray[np.bool_] = (gap <= _ACC_GAP_MS).all(axis=1)
    return sampled


def _acc(
    recording: Recording, rows: npt.NDArray[np.intp], grid: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    times = recording.acc_ms
    newest = times[np.searchsorted(times, recording.frame_ms[rows], side="right") - 1]
    # Interpolating only up to the newest known sample uses no later one.
    known = np.minimum(grid, newest[:, None])
    channels = [np.interp(known, times, channel) for channel in recording.acc.T]
    windows: npt.NDArray[np.float32] = np.stack(channels, axis=1).astype(np.float32)
    return windows


def _depth(recording: Recording, grid: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    # Never a frame after the end of the window: that is labelled itself and therefore nearer.
    nearest = np.abs(grid[:, :, None] - recording.frame_ms).argmin(axis=2)
    windows: npt.NDArray[np.float32] = recording.depth[nearest].transpose(0, 2, 1)
    return windows


def _rgb(
    video: npt.NDArray[np.uint8], frame: npt.NDArray[np.int64], seconds: float
) -> npt.NDArray[np.float32]:
    ends = (frame.astype(np.float64) - 1) * FRAME_MS
    shown = np.rint(_grid(ends, seconds, _RGB_FRAMES) / FRAME_MS).astype(int).clip(min=0)
    images = video[shown].transpose(0, 1, 4, 2, 3)  # (n, frames, colours, height, width)
    windows: npt.NDArray[np.float32] = images.reshape(len(frame), *MODALITIES["rgb"].shape).astype(
        np.float32
    )
    return windows
