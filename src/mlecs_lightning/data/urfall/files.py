"""Reads the official files of UR Fall and aligns them in time."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlecs_lightning.data.urfall.video import read_video

__all__ = ["CLASSES", "DEPTH_FEATURES", "FRAME_MS", "Recording", "read_recordings"]

CLASSES = ("upright", "falling", "lying")
DEPTH_FEATURES = (
    *("HWRatio", "MMRatio", "BoundingBoxOccupancy", "MaxStdXZ"),
    *("HHMaxRatio", "ActualHeight", "DistanceToFloor", "P40"),
)
"""Features of the person in the depth map, in the order of the files; lengths are in mm."""

FRAME_MS = 1000 / 30
"""Milliseconds between two frames."""

_LABELS = {"-1": 0, "0": 1, "1": 2}
_ACCELEROMETER = "accelerometer"
_FEATURES = "labels_depth_features"
_VIDEOS = "rgb_cam0"
_LABEL_FILES = ("urfall-cam0-falls.csv", "urfall-cam0-adls.csv")


@dataclass(frozen=True)
class Recording:
    """One sequence with N labelled frames, S accelerometer samples and F video frames.

    All times count from the start of the video: frame k is taken at ``(k - 1) * 1000 / 30`` ms. The
    sync file of fall-01 agrees to 5.4 ms over 5.3 s.

    Attributes:
        name: Name of the sequence, such as ``fall-01``.
        frame: (N,) int64 number of each labelled frame, from 1. Frames without a person have no
            label.
        label: (N,) int64 index into `CLASSES`.
        depth: (N, 8) float32 `DEPTH_FEATURES`.
        acc_ms: (S,) float64 time of each accelerometer sample in ms, ascending.
        acc: (S, 4) float32 Ax, Ay, Az and SV (their norm) in g, from the sensor at the waist.
        video: (F, 24, 32, 3) uint8 RGB of all frames; ``None`` if it was not read.
    """

    name: str
    frame: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    depth: npt.NDArray[np.float32]
    acc_ms: npt.NDArray[np.float64]
    acc: npt.NDArray[np.float32]
    video: npt.NDArray[np.uint8] | None = None

    @property
    def frame_ms(self) -> npt.NDArray[np.float64]:
        """Time of each labelled frame in ms, (N,) float64."""
        return (self.frame.astype(np.float64) - 1) * FRAME_MS


def read_recordings(
    root: Path, names: Sequence[str], *, video: bool = True, cache_dir: Path | None = None
) -> dict[str, Recording]:
    """Read sequences from the official files.

    Args:
        root: Folder with the subfolders ``accelerometer``, ``labels_depth_features`` and
            ``rgb_cam0``, or with all files in the folder itself.
        names: Sequences to read.
        video: Whether to read the videos; if not, they may be missing.
        cache_dir: See `read_video`.

    Returns:
        The recordings, by name, in the given order.

    Raises:
        FileNotFoundError: If files are missing; the message counts those of each kind.
        ValueError: If a row or a video is malformed; the message names file and line.
    """
    wanted = {
        _ACCELEROMETER: [f"{name}-acc.csv" for name in names],
        _FEATURES: sorted({_LABEL_FILES[name.startswith("adl")] for name in names}),
        _VIDEOS: [f"{name}-cam0.mp4" for name in names] if video else [],
    }
    found = _find(root, wanted)
    features = {}
    for file in wanted[_FEATURES]:
        features.update(_read_features(found[file]))
    unlabelled = [name for name in names if name not in features]
    if unlabelled:
        raise ValueError(f"{root}: {wanted[_FEATURES]} have no labelled frames of {unlabelled}")
    return {
        name: _checked(
            Recording(
                name,
                *features[name],
                *_read_accelerometer(found[f"{name}-acc.csv"]),
                read_video(found[f"{name}-cam0.mp4"], cache_dir=cache_dir) if video else None,
            )
        )
        for name in names
    }


def _find(root: Path, wanted: dict[str, list[str]]) -> dict[str, Path]:
    """Return the path of each file, in its folder or in the root itself.

    Raises:
        FileNotFoundError: If files are missing.
    """
    found: dict[str, Path] = {}
    for folder, files in wanted.items():
        for file in files:
            for path in (root / file, root / folder / file):
                if path.is_file():
                    found[file] = path
    missing = {folder: [f for f in files if f not in found] for folder, files in wanted.items()}
    if any(missing.values()):
        raise FileNotFoundError(_missing_files(root, wanted, missing))
    return found


def _missing_files(root: Path, wanted: dict[str, list[str]], missing: dict[str, list[str]]) -> str:
    state = "lacks files of UR Fall" if root.is_dir() else "is not a folder"
    lines = [f"data.init_args.root: {str(root)!r} {state}. Expected below it:"]
    for folder, files in wanted.items():
        gone = missing[folder]
        line = f"  {folder}/: found {len(files) - len(gone)} of {len(files)}"
        if gone:
            line += f", missing {', '.join(gone[:3])}{', ...' if len(gone) > 3 else ''}"
        lines.append(line)
    return "\n".join(lines)


def _read_rows(path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and fields of each row.

    Raises:
        ValueError: If a row has another number of fields.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        for row in reader:
            if not row:
                continue
            if len(row) != columns:
                raise ValueError(
                    f"{path}:{reader.line_num}: expected {columns} fields, got {len(row)}: {row}"
                )
            yield reader.line_num, row


def _floats(path: Path, line: int, fields: Sequence[str]) -> list[float]:
    try:
        values = [float(field) for field in fields]
    except ValueError as error:
        raise ValueError(f"{path}:{line}: {error}") from None
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{path}:{line}: not a finite number in {list(fields)}")
    return values


_Features = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]


def _read_features(path: Path) -> dict[str, _Features]:
    """Read labels and depth features; a row has sequence, frame, label and eight features.

    Some copies begin with a header row; the official files do not.

    Returns:
        Frame numbers, labels and features of each sequence: see `Recording`.
    """
    rows: dict[str, list[tuple[int, int, list[float]]]] = {}
    for number, (line, (name, frame, label, *values)) in enumerate(_read_rows(path, 11)):
        if number == 0 and not frame.strip().isdecimal():
            continue
        if not frame.strip().isdecimal() or int(frame) < 1:
            raise ValueError(f"{path}:{line}: {frame!r} is not a frame number")
        if label.strip() not in _LABELS:
            raise ValueError(f"{path}:{line}: label {label!r} is not one of {list(_LABELS)}")
        row = (int(frame), _LABELS[label.strip()], _floats(path, line, values))
        rows.setdefault(name.strip(), []).append(row)
    sequences = {}
    for name, unsorted in rows.items():
        frames, labels, features = zip(*sorted(unsorted), strict=True)
        sequences[name] = (
            np.array(frames, np.int64),
            np.array(labels, np.int64),
            np.array(features, np.float32),
        )
    return sequences


def _read_accelerometer(path: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """Read accelerometer samples; a row has the time in ms, and SV, Ax, Ay and Az in g.

    The clock of adl-27 jumps back by 3.3 s for a while; after sorting, those samples are before the
    video.

    Returns:
        (S,) float64 ascending, and (S, 4) float32 in the order Ax, Ay, Az, SV.
    """
    rows = np.array([_floats(path, line, fields) for line, fields in _read_rows(path, 5)])
    if not len(rows):
        raise ValueError(f"{path}: no samples")
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    return rows[:, 0], rows[:, [2, 3, 4, 1]].astype(np.float32)


def _checked(recording: Recording) -> Recording:
    video, last = recording.video, recording.frame[-1]
    if video is not None and last > len(video):
        raise ValueError(
            f"{recording.name}: frame {last} is labelled, but the video ends after {len(video)}"
        )
    return recording
