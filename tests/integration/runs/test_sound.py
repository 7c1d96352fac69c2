"""From recordings of a phone to answers: `predict`, `export` and `ask` hear the same."""

import json
import wave
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mlecs_lightning import load_exported
from mlecs_lightning.data import Manifest
from mlecs_lightning.data.digits import _WORDS

Mlecs = Callable[..., SimpleNamespace]
# Named as people do.
MIC, CAMERA, TILT = "mic-1", "front camera", "tilt"
MODALITIES = {
    MIC: {
        "kind": "series",
        "shape": [1, 2000],
        "rate": 8000,
        "features": {"kind": "log_mel", "bands": 16, "window": 0.016, "hop": 0.008},
    },
    CAMERA: {"kind": "image", "shape": [3, 8, 8]},
    TILT: {
        "kind": "series",
        "shape": [2, 4],
        "csv": {"columns": ["x", "y"], "delimiter": ";", "decimal": ","},
    },
}
CLIENTS = {"kitchen": [MIC, CAMERA], "hall": [MIC, TILT]}


def record(path: Path, word: int, seed: int) -> None:
    """A vowel in stereo at 16 kHz: harmonics of a voice, whose loudest ones tell the class."""
    rng = np.random.default_rng(seed)
    time, pitch = np.arange(4800) / 16_000, rng.uniform(90, 220)
    harmonics = np.arange(1, int(4000 / pitch)) * pitch
    loudness = np.exp(-(((harmonics - 400 - 300 * word) / 200) ** 2))
    tones = np.sin(2 * np.pi * harmonics[:, None] * time + rng.uniform(0, 6, (len(harmonics), 1)))
    voice = (loudness[:, None] * tones).sum(0)
    sides = np.stack([voice, 0.5 * voice], axis=1) + rng.normal(0, 0.01, (len(time), 2))
    with wave.open(str(path), "wb") as writer:
        writer.setparams((2, 2, 16_000, 0, "NONE", ""))
        writer.writeframes((sides / np.abs(sides).max() * 9999).astype("<i2").tobytes())


@pytest.fixture(scope="module")
def config(
    manifest_yaml: Callable[..., Path],
    tiny: SimpleNamespace,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Stereo recordings, screenshots with alpha and tables with decimal commas."""
    root = tmp_path_factory.mktemp("phone")
    words = list(_WORDS)[:4]
    lines: list[dict[str, Any]] = []
    for n in range(40):
        split, client = [("public", None), ("train", "kitchen"), ("train", "hall"), ("test", None)][
            n // 10
        ]
        record(root / f"{n}.wav", n % 4, n)
        rng = np.random.default_rng(n)
        pixels = rng.integers(0, 256, (20, 12, 4)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{n}.png")
        numbers = [f"{value:.2f}".replace(".", ",") for value in rng.normal(size=10)]
        rows = [f"10:0{i};{numbers[2 * i]};{numbers[2 * i + 1]}" for i in range(5)]
        (root / f"{n}.csv").write_text("\n".join(["time;x;y", *rows]))
        files = {MIC: f"{n}.wav", CAMERA: f"{n}.png", TILT: f"{n}.csv"}
        line = {"id": n, "split": split, "client": client, "modalities": files}
        lines.append({**line, "target": f"the digit is {words[n % 4]} ."})
    new = [{"id": n, "modalities": {MIC: f"{n}.wav"}} for n in range(30, 40)]
    (root / "new.jsonl").write_text("".join(json.dumps(line) + "\n" for line in new))
    return manifest_yaml(
        root,
        lines,
        modalities=MODALITIES,
        clients=CLIENTS,
        model=tiny.pocket(),
        max_new_tokens=8,
        steps=8,
        labels={word: [word] for word in words},
        batch_size=8,
    )


def test_a_folder_of_a_phone_is_checked_trained_on_predicted_and_asked(
    config: Path, fit: Callable[..., SimpleNamespace], mlecs: Mlecs, tmp_path: Path
) -> None:
    folder = config.parent
    checked = mlecs("data", "check", "--config", config)
    assert checked.code == 0, checked.err
    said = " ".join(checked.out.split())
    assert "mic-1: 40 of 40 sounds in stereo were mixed to one channel" in said
    assert "front camera: 40 of 40 images with alpha were laid on white" in said
    assert "mic-1: of 40 of 40 sounds only the last 0.25 s are used; the longest has 0.3 s" in said
    assert "16 x 30" in said  # bands and windows: 1 + (2000 - 128) // 64

    ran = fit(tmp_path, "--trainer.max_rounds", 1, config=config)
    root = ("--trainer.default_root_dir", tmp_path)
    new = ("--data.init_args.file", folder / "new.jsonl")
    predicted = mlecs("predict", "--config", config, *root, "--ckpt_path", "last", *new)
    assert predicted.code == 0, predicted.err
    rows = map(json.loads, Path(predicted.out.strip()).read_text().splitlines())
    answers = {(row["party"], row["id"]): row["prediction"] for row in rows}

    exported = mlecs("export", ran.folder, "--client", "kitchen", tmp_path / "kitchen")
    assert exported.code == 0, exported.err
    model = load_exported(tmp_path / "kitchen")
    assert model.modalities == tuple(CLIENTS["kitchen"])
    written = yaml.safe_load(config.read_text())["data"]["init_args"]
    table = Manifest(**{k: v for k, v in written.items() if k != "alpha"}).pools.test
    for row, n in enumerate(range(30, 40)):
        path = folder / f"{n}.wav"
        heard = model.preparations[MIC].read(path)
        assert heard.shape == (16, 30)
        assert torch.equal(heard, table.inputs[MIC][row])
        assert model.ask(**{MIC: path}) == answers["kitchen", str(n)]
