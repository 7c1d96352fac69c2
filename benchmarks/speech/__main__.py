"""Spoken words: clients with a microphone alone, against a logistic regression.

    python -m benchmarks.speech [--out benchmarks/results/speech.jsonl]

Setting, written down before the first run on it:

- Ten words, synthesised by espeak-ng in six voices, each at four speeds and three pitches: 120
  sounds a voice, 720 in all.
- Three splits by voice, 0, 2 and 4: in split k the voices are rotated by k; two are public, each
  of two clients has one, and two are for the test. So no voice of the test is heard in training,
  and each voice is in one test.
- configs/manifest.yaml as it is shipped (ML-ECS, a microphone read as a log-mel spectrogram), with
  the microphone as the only sensor, 3 rounds of 150 public and 150 private steps and
  200 of warm-up. Seed of the run: that of the split.
- Reference: `sklearn.linear_model.LogisticRegression` (all defaults, up to 2,000 iterations) on the
  same standardised spectrograms, one for each client, trained on all samples that the client may
  learn from: the public ones and its own, validation included.
- Measure: macro-F1 of a client on all test samples; an answer that names no single word counts as
  wrong. Rule: the mean over clients and splits is at most 5 points below that of the regression.

Choices about features and encoder were made on other words in other voices (``--development``).
It needs espeak-ng (Debian: ``apt-get install espeak-ng``). ``--prepare FOLDER`` runs nothing: it
writes the sounds and the manifests of the splits, which benchmarks/quality reads in data/words.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import yaml

from benchmarks.harness import REPOSITORY, append_line, commit, hardware

SPEEDS = (130, 150, 170, 190)
PITCHES = (35, 50, 65)
CLIENTS = ("kitchen", "hall")


class Task(NamedTuple):
    """Words and the voices that say them."""

    words: tuple[str, ...]
    voices: tuple[str, ...]


TEST = Task(
    ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"),
    ("en-us", "en-gb-scotland", "en-029", "en-us+f3", "en-gb+f4", "en-us+m3"),
)
DEVELOPMENT = Task(
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ("en-gb", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-scotland+f2", "en-029+f5", "en-us+m7"),
)


def synthesise(task: Task, folder: Path) -> None:
    """Write ``VOICE-WORD-SPEED-PITCH.wav`` for all of them."""
    for voice in task.voices:
        for word in task.words:
            for speed in SPEEDS:
                for pitch in PITCHES:
                    path = folder / f"{voice}-{word}-{speed}-{pitch}.wav"
                    settings = ["-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(path)]
                    subprocess.run(["espeak-ng", *settings, word], check=True)


def lines(task: Task, split: int) -> list[dict[str, Any]]:
    """Return the lines of the manifest of a split."""
    voices = task.voices[split:] + task.voices[:split]
    roles = [
        *({"split": "public"} for _ in range(2)),
        *({"split": "train", "client": client} for client in CLIENTS),
        *({"split": "test"} for _ in range(2)),
    ]
    return [
        {
            **role,
            "id": f"{voice}-{word}-{speed}-{pitch}",
            "target": f"somebody says {word} .",
            "modalities": {"mic": f"{voice}-{word}-{speed}-{pitch}.wav"},
        }
        for voice, role in zip(voices, roles, strict=True)
        for word in task.words
        for speed in SPEEDS
        for pitch in PITCHES
    ]


def write_manifest(task: Task, split: int, folder: Path) -> Path:
    """Write the manifest of a split beside the sounds."""
    manifest = folder / f"split-{split}.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines(task, split)))
    return manifest


def configuration(task: Task, manifest: Path, cache: Path) -> dict[str, Any]:
    """Return the shipped configuration of a folder, on these sounds."""
    path = REPOSITORY / "configs/manifest.yaml"
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    data = config["data"]["init_args"]
    data |= {
        "file": str(manifest),
        "modalities": {"mic": data["modalities"]["mic"]},
        "labels": {word: [word] for word in task.words},
        "instruction": "what does somebody say ?",
        "cache_dir": str(cache),
    }
    steps = {"warmup": 200, "public": 150, "private": 150, "server": 150}
    config["algorithm"]["init_args"]["steps"] = steps
    config["clients"] = {name: {"modalities": ["mic"]} for name in CLIENTS}
    return config


def regression(data: dict[str, Any]) -> dict[str, float]:
    """Return macro-F1 of the logistic regression of each client."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    from mlecs_lightning.data import Manifest

    pools = Manifest(**data).pools
    scores = {}
    for client in CLIENTS:
        own = pools.private.select([i for i, d in enumerate(pools.private.domains) if d == client])
        x = torch.cat([table.inputs["mic"].flatten(1) for table in (pools.public, own)])
        y = torch.cat([table.labels for table in (pools.public, own)])
        model = LogisticRegression(max_iter=2000).fit(x.numpy(), y.numpy())
        said = model.predict(pools.test.inputs["mic"].flatten(1).numpy())
        scores[client] = float(f1_score(pools.test.labels.numpy(), said, average="macro"))
    return scores


def run(task: Task, split: int, folder: Path, *, options: Sequence[str] = ()) -> dict[str, Any]:
    """Train on a split and return its line."""
    began = time.perf_counter()
    manifest = write_manifest(task, split, folder)
    config = configuration(task, manifest, folder / "cache")
    written = folder / f"split-{split}.yaml"
    written.write_text(yaml.safe_dump(config, sort_keys=False))
    fixed = {
        "seed_everything": split,
        "trainer.accelerator": "cpu",
        "trainer.check_val_every_n_rounds": 0,
        "trainer.enable_checkpointing": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": folder,
        "trainer.name": f"split-{split}",
    }
    arguments = [word for key, value in fixed.items() for word in (f"--{key}", str(value))]
    ran = subprocess.run(
        [sys.executable, "cli.py", "fit", "--config", str(written), *arguments, *options],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError("\n".join(ran.stderr.splitlines()[-20:]))
    summary = json.loads((folder / f"split-{split}/version_0/summary.json").read_text())
    reference = regression(config["data"]["init_args"])
    return {
        "split": split,
        "macro_f1": {c: round(summary["clients"][c]["all"]["macro_f1"], 4) for c in CLIENTS},
        "server": round(summary["server"]["macro_f1"], 4),
        "regression": {c: round(f1, 4) for c, f1 in reference.items()},
        "seconds": round(time.perf_counter() - began, 1),
        "commit": commit(),
        "hardware": hardware(),
    }


def main() -> int:
    """Run the splits, and print mean and spread."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks/results/speech.jsonl")
    parser.add_argument("--splits", nargs="+", type=int, default=[0, 2, 4])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--development", action="store_true", help="other words, other voices")
    parser.add_argument(
        "--prepare", type=Path, metavar="FOLDER", help="write the data, run nothing"
    )
    arguments, options = parser.parse_known_args()
    if shutil.which("espeak-ng") is None:
        raise SystemExit("espeak-ng is missing; on Debian: apt-get install espeak-ng")
    task = DEVELOPMENT if arguments.development else TEST
    if arguments.prepare:
        arguments.prepare.mkdir(parents=True, exist_ok=True)
        synthesise(task, arguments.prepare)
        for split in arguments.splits:
            write_manifest(task, split, arguments.prepare)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthesise(task, folder)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            rows = list(pool.map(lambda k: run(task, k, folder, options=options), arguments.splits))
    for row in rows:
        if not arguments.development:
            append_line(arguments.out, row)
        print(*(f"{key} {row[key]}" for key in ("split", "macro_f1", "server", "regression")))
    gaps = [row["macro_f1"][c] - row["regression"][c] for row in rows for c in CLIENTS]
    for title, key in (("clients", "macro_f1"), ("regression", "regression")):
        values = [row[key][c] for row in rows for c in CLIENTS]
        print(f"{title}: {mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    print(f"difference: {mean(gaps):+.3f}, deviation over clients and splits {stdev(gaps):.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
