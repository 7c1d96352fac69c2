"""UR Fall Detection: falls seen by an accelerometer, a depth camera and an RGB camera."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mlecs_lightning.data.base import FederatedDataModule, Partition, Pools
from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.data.urfall.files import CLASSES, Recording, read_recordings
from mlecs_lightning.data.urfall.split import SCENES, Split, split_sequences
from mlecs_lightning.data.urfall.windows import MODALITIES, Windows, cut_windows, median_background
from mlecs_lightning.errors import FaultList
from mlecs_lightning.storage.paths import expanded

__all__ = ["URFall"]

_INSTRUCTION = "what is the person doing ?"
# Each contains one class name. A blank before the full stop: the pocket tokenizer splits at blanks.
_TARGETS = (
    "the person is upright .",
    "the person is falling down .",
    "the person is lying on the floor .",
)


class URFall(FederatedDataModule):
    """UR Fall Detection: 30 falls and 40 activities of daily living in seven scenes.

    A sample is a causal window that ends at a labelled frame; the target says what the person does
    in that frame (upright, falling, lying). There are three modalities: ``acc`` (4, 32), the
    accelerometer at the waist and its norm; ``depth`` (8, 8), the published features of the depth
    map; ``rgb`` (9, 24, 32), three frames minus the median of their video (`median_background`).
    All are standardised by channel with mean and deviation of the public samples, so that the
    shared constants reveal no private value.

    Domains are the scenes, groups are the sequences. Every sample has all modalities; `cut_windows`
    says which windows are left out. ``fall-10`` is left out because its accelerometer is not
    synchronous.

    Source: B. Kwolek and M. Kepski, "Human fall detection on embedded platform using depth maps and
    wireless accelerometer", Computer Methods and Programs in Biomedicine 117(3), 2014, 489-501.
    """

    modalities = MODALITIES
    classes = CLASSES

    def __init__(
        self,
        root: str | Path,
        *,
        modalities: list[str] | None = None,
        split: Split = "suggested",
        test_scene: str | None = None,
        window_seconds: float = 1.0,
        stride: int = 5,
        cache_dir: str | Path | None = None,
        partition: Partition = "domain",
        **kwargs: Any,
    ) -> None:
        """Set where the files are, and how windows are cut.

        Args:
            root: Folder of the official files: ``accelerometer/*-acc.csv``,
                ``labels_depth_features/urfall-cam0-{falls,adls}.csv`` and
                ``rgb_cam0/*-cam0.mp4``, or all of them without subfolders.
            modalities: Which of acc, depth and rgb to use; all by default. The videos are read (and
                PyAV is needed) for rgb only.
            split: See `split_sequences`.
            test_scene: The scene to leave out, with ``leave_one_scene_out``. No client trains
                there, so with ``partition: domain`` the clients' own test sets are empty.
            window_seconds: Length of a window in seconds.
            stride: Number of labelled frames from one window to the next, in all classes and pools.
                5 gives 1,996 windows, six per second.
            cache_dir: Where decoded videos are kept, ``$MLECS_CACHE`` or
                ``~/.cache/mlecs_lightning`` by default.
            partition: As in `FederatedDataModule`.
            **kwargs: See `FederatedDataModule`.

        Raises:
            ValueError: If a value is out of range.
        """
        faults = FaultList()
        with faults.collecting():
            super().__init__(partition=partition, **kwargs)
        chosen = list(MODALITIES) if modalities is None else modalities
        if not chosen or not set(chosen) <= set(MODALITIES):
            faults.append(
                f"data.init_args.modalities must be some of {list(MODALITIES)}, got {chosen}"
            )
        if not window_seconds > 0 or stride < 1:
            faults.append(
                "data.init_args.window_seconds must be positive and stride at least 1, "
                f"got {window_seconds} and {stride}"
            )
        sequences = faults.attempt(split_sequences, split, test_scene)
        faults.raise_any()
        assert sequences is not None
        self.sequences = sequences
        self.modalities = {name: spec for name, spec in MODALITIES.items() if name in chosen}
        self.root = expanded(root, key="data.init_args.root")
        self.window_seconds = window_seconds
        self.stride = stride
        self.cache_dir = (
            None if cache_dir is None else expanded(cache_dir, key="data.init_args.cache_dir")
        )

    def load_pools(self) -> Pools:
        """Read the files, cut the windows and put those of each sequence into a pool."""
        recordings = read_recordings(
            self.root,
            list(itertools.chain(*self.sequences)),
            video="rgb" in self.modalities,
            cache_dir=self.cache_dir,
        )
        windows = {name: self._windows(recording) for name, recording in recordings.items()}
        public = [windows[name] for name in self.sequences.public]
        scales = {m: _scale([each.inputs[m] for each in public]) for m in self.modalities}
        return Pools(*(self._table(windows, names, scales) for names in self.sequences))

    def _windows(self, recording: Recording) -> Windows:
        windows = cut_windows(recording, seconds=self.window_seconds, stride=self.stride)
        if recording.video is not None:
            windows.inputs["rgb"] -= median_background(recording.video)
        return windows

    def _table(
        self,
        windows: dict[str, Windows],
        names: Sequence[str],
        scales: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]],
    ) -> SampleTable:
        inputs = {}
        for modality, (mean, deviation) in scales.items():
            column = np.concatenate([windows[name].inputs[modality] for name in names])
            inputs[modality] = torch.from_numpy((column - mean) / deviation)
        labels = np.concatenate([windows[name].label for name in names])
        groups = [name for name in names for _ in windows[name].frame]
        return SampleTable(
            ids=tuple(f"{name}/{frame:03d}" for name in names for frame in windows[name].frame),
            modalities=tuple(scales),
            inputs=inputs,
            present=torch.ones(len(labels), len(scales), dtype=torch.bool),
            instructions=(_INSTRUCTION,) * len(labels),
            targets=tuple(_TARGETS[label] for label in labels),
            labels=torch.from_numpy(labels),
            domains=tuple(SCENES[name] for name in groups),
            groups=tuple(groups),
        )

    def read_label(self, text: str) -> int | None:
        """Return the class that the text names, ``None`` if it names none or several."""
        named = {word for word in re.findall(r"[a-z]+", text.lower()) if word in CLASSES}
        return CLASSES.index(named.pop()) if len(named) == 1 else None

    def pretraining_pairs(self) -> list[tuple[str, str]]:
        """Return the three sentences, each with its class name alone and next to common words."""
        return [
            (" ".join(keys), sentence)
            for name, sentence in zip(CLASSES, _TARGETS, strict=True)
            for others in ((), ("person",), ("room",), ("person", "room"))
            for keys in itertools.permutations((name, *others))
        ]


def _scale(
    windows: list[npt.NDArray[np.float32]],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return mean and standard deviation of each channel (axis 1), ready to broadcast."""
    column = np.concatenate(windows)
    others = (0, *range(2, column.ndim))
    mean = column.mean(axis=others, keepdims=True, dtype=np.float64)
    deviation = column.std(axis=others, keepdims=True, dtype=np.float64)
    return mean.astype(np.float32), deviation.astype(np.float32)
