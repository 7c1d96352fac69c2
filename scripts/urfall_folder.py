"""Make a folder of files out of the UR Fall data, as somebody with devices would have it.

    python scripts/urfall_folder.py PATH/TO/urfd data/home

One sample a sequence, in five kinds of files: the official accelerometer file (csv), its total
acceleration as a sound (wav), a frame of the video (png; of some sequences the video itself, mp4),
the features of the depth camera (npy), and a note made of them (txt). ``samples.jsonl`` names those
of the training, ``new.jsonl`` the test sequences once more, without a target.

It shows how data of one's own are used, and no method: falls were filmed in other rooms than the
daily activities, and are shorter: whole sequences are told apart without looking at anybody.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from mlecs_lightning.data.urfall.split import split_sequences

RATE = 100  # points a second of the sound
CLIENTS = ("kitchen", "hall")


def depth_features(root: Path) -> dict[str, np.ndarray]:
    """Return for each sequence (8, frames)."""
    rows: dict[str, list[list[float]]] = {}
    for kind in ("falls", "adls"):
        file = root / "labels_depth_features" / f"urfall-cam0-{kind}.csv"
        for name, _, _, *values in csv.reader(file.open(encoding="utf-8")):
            if name.startswith(("fall-", "adl-")):
                rows.setdefault(name, []).append([float(value) for value in values])
    return {name: np.array(values, np.float32).T for name, values in rows.items()}


def last_key_frame(video: Path) -> Image.Image:
    """Return the last frame of a video that is stored whole."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        stream.codec_context.skip_frame = "NONKEY"
        *_, frame = container.decode(stream)
        return frame.to_image()


def write_sound(acceleration: np.ndarray, path: Path) -> None:
    """Write the total acceleration (milliseconds, g, ...) as a sound; 4 g are full volume."""
    seconds, total = acceleration[:, 0] / 1000, acceleration[:, 1] - 1
    time = np.arange(seconds[0], seconds[-1], 1 / RATE)
    points = np.interp(time, seconds, total).clip(-4, 4) / 4 * 32767
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, RATE, 0, "NONE", ""))
        sound.writeframes(points.astype("<i2").tobytes())


def write_files(
    root: Path, out: Path, name: str, depth: np.ndarray, *, whole: bool
) -> dict[str, str]:
    """Write the files of a sequence; return for each modality its file."""
    video = root / "rgb_cam0" / f"{name}-cam0.mp4"
    official = root / "accelerometer" / f"{name}-acc.csv"
    shutil.copyfile(official, out / f"{name}.csv")
    write_sound(np.loadtxt(official, delimiter=","), out / f"{name}.wav")
    np.save(out / f"{name}.npy", depth)
    ratio, height, floor = depth[[0, 5, 6], -1]
    note = f"height over width {ratio:.1f} , height {height:.0f} , above the floor {floor:.0f}"
    (out / f"{name}.txt").write_text(note + "\n", encoding="utf-8")
    if whole:
        shutil.copyfile(video, out / f"{name}.mp4")
    else:
        last_key_frame(video).save(out / f"{name}.png")
    endings = {"acc": "csv", "sound": "wav", "depth": "npy", "note": "txt"}
    endings["camera"] = "mp4" if whole else "png"
    return {modality: f"{name}.{ending}" for modality, ending in endings.items()}


def lines(root: Path, out: Path) -> Iterator[dict[str, Any]]:
    """Write the files; yield the line of each sequence."""
    depth = depth_features(root)
    for split, names in split_sequences("suggested")._asdict().items():
        for number, name in enumerate(names):
            whole = split == "private" and number % 10 == 0
            fell = name.startswith("fall")
            yield {
                "id": name,
                "split": {"private": "train"}.get(split, split),
                "client": None if split == "public" else CLIENTS[number % 2],
                "modalities": write_files(root, out, name, depth[name], whole=whole),
                "target": "somebody has fallen ." if fell else "somebody is up and about .",
            }


def main() -> None:
    """Make the folder."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder of the UR Fall data")
    parser.add_argument("out", type=Path, help="the folder to make")
    given = parser.parse_args()
    write_folder(given.root, given.out)


def write_folder(root: Path, out: Path) -> None:
    """Make the folder.

    Args:
        root: Folder of the UR Fall data.
        out: The folder to make.
    """
    out.mkdir(parents=True)
    known = list(lines(root, out))
    new = [
        {"id": f"new-{line['id']}", "modalities": line["modalities"]}
        for line in known
        if line["split"] == "test"
    ]
    for file, rows in (("samples.jsonl", known), ("new.jsonl", new)):
        (out / file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
