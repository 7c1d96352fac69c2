"""Summaries of three texts: does every client beat a constant sentence and copying one input?

    python -m benchmarks.summaries

Setting, written down before any run: `task`, 300 public, 240 private, 60
validation and 120 test samples (no word but function words, verbs and places is in two parts), six
places as domains, two to each client; configs/paper/vast.yaml with configs/paper/pocket.yaml on
top. Seeds 27, 34 and 46, of the texts and of the training. Choices are made on validation samples.

Rule: for each client, the mean over seeds of its Rouge-Lsum on all test samples minus that of the
best constant sentence (of the public targets) must be at least 0.15; and it must be above that of
the best of its own inputs, copied. Differences are printed as median and range; a client that
misses one is printed as such. One JSON line is kept for each seed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from benchmarks.harness import REPOSITORY, append_line, commit, hardware, read_lines, spread
from mlecs_lightning.metrics import TextMetrics

SEEDS = (27, 34, 46)
SIZES = {"public": 300, "train": 240, "val": 60, "test": 120}
CLIENTS = {
    "studio": (["vision", "audio", "subtitle"], ["kitchen", "garden"]),
    "camera": (["vision", "subtitle"], ["street", "workshop"]),
    "radio": (["audio"], ["harbour", "forest"]),
}
MARGIN = 0.15
RESULTS = REPOSITORY / "benchmarks" / "results" / "summaries.jsonl"
TRIED = 40
"""Constant sentences that are tried: public targets, since no sentence occurs twice."""


# Made of syllables, so that there are more than anyone can learn by heart.
_FIRST = (*"bdfghjklmnprstvwz", "br", "dr", "gr", "kl", "pl", "st", "tr")
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ee", "oo"]
_LAST = ["", "l", "m", "n", "r", "s", "t", "nd", "rk", "x"]
_DOES = ["lifts", "washes", "paints", "cuts", "throws", "opens", "carries", "hides"]
_PLACES = ["kitchen", "garden", "street", "workshop", "harbour", "forest"]
_SOUNDS = ["bells", "music", "rain", "laughter", "engines", "birds"]
_HOW = ["softly", "loudly", "far", "away", "nearby"]
_SAYS = ["explains", "praises", "regrets", "mentions"]


class Sample(TypedDict):
    """One sample: its texts by modality, the sentence to say, and the place, its domain."""

    texts: dict[str, str]
    target: str
    domain: str


def _word(dice: random.Random) -> str:
    return "".join(
        dice.choice(_FIRST) + dice.choice(_VOWELS) + dice.choice(_LAST)
        for _ in range(dice.choice((1, 2, 2)))
    )


def _pool(part: str, count: int) -> list[str]:
    """Return the words of one part; no other part has one of them."""
    taken: set[str] = set()
    pools: dict[str, list[str]] = {}
    dice = random.Random(1729)
    for each in ("public", "train", "val", "test"):
        pools[each] = []
        while len(pools[each]) < count:
            word = _word(dice)
            if word not in taken and len(word) > 3:
                taken.add(word)
                pools[each].append(word)
    return pools[part]


def task(count: int, *, part: str, seed: int) -> list[Sample]:
    """Return ``count`` samples of a part: ``public``, ``train``, ``val`` or ``test``.

    What is seen, heard and said have no word in common but function words.
    """
    dice, words, samples = random.Random(f"{part}/{seed}"), _pool(part, 400), []
    for _ in range(count):
        who, thing, source, said, about = dice.sample(words, 5)
        place = dice.choice(_PLACES)
        seen = f"{who} {dice.choice(_DOES)} a {thing} in the {place}"
        heard = f"{dice.choice(_SOUNDS)} and a {source} sound {dice.choice(_HOW)}"
        speech = f"{said} {dice.choice(_SAYS)} the {about}"
        samples.append(
            Sample(
                texts={
                    "vision": f"the camera shows that {seen}",
                    "audio": f"{heard} on the recording",
                    "subtitle": f"well , {speech} as we all know",
                },
                target=f"{seen} while {heard} and {speech} .",
                domain=place,
            )
        )
    return samples


def write(path: Path, *, seed: int) -> dict[str, list[Sample]]:
    """Write the manifest, and return its samples by part."""
    parts = {part: task(count, part=part, seed=seed) for part, count in SIZES.items()}
    lines = [
        {
            "id": f"{part}-{i}",
            "split": part,
            **({} if part == "public" else {"domain": sample["domain"]}),
            "modalities": {m: {"text": text} for m, text in sample["texts"].items()},
            "target": sample["target"],
        }
        for part, samples in parts.items()
        for i, sample in enumerate(samples)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return parts


def rouge(said: Sequence[str], targets: Sequence[str]) -> float:
    """Return Rouge-Lsum."""
    metrics = TextMetrics()
    metrics.update(list(said), list(targets))
    return float(metrics.compute()["rouge_lsum"])


def run(seed: int) -> dict[str, Any]:
    """Train once, and return the scores of all clients and of what they are compared with."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        parts = write(root / "vast.jsonl", seed=seed)
        clients = {
            client: {"modalities": has, "domains": holds}
            for client, (has, holds) in CLIENTS.items()
        }
        command = [sys.executable, "cli.py", "fit"]
        for config in ("vast", "pocket"):
            command += ["--config", f"configs/paper/{config}.yaml"]
        command += ["--data.init_args.file", str(root / "vast.jsonl")]
        command += ["--clients", json.dumps(clients), "--seed_everything", str(seed)]
        command += ["--trainer.default_root_dir", str(root), "--trainer.name", "run"]
        subprocess.run(command, cwd=REPOSITORY, check=True)
        folder = root / "run" / "version_0"
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    targets = [sample["target"] for sample in parts["test"]]
    constants = [sample["target"] for sample in parts["public"][:TRIED]]
    copies = {
        m: rouge([s["texts"][m] for s in parts["test"]], targets) for m in CLIENTS["studio"][0]
    }
    return {
        "seed": seed,
        "constant": max(rouge([said] * len(targets), targets) for said in constants),
        "copies": copies,
        "server": summary["server"]["rouge_lsum"],
        "clients": {c: summary["clients"][c]["all"]["rouge_lsum"] for c in CLIENTS},
        "pretraining": summary["pretraining"],
        "seconds": time.perf_counter() - begun,
        "commit": commit(),
        "hardware": hardware(),
    }


def main() -> None:
    """Run the seeds that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    seeds = parser.parse_args().seeds
    known = {row["seed"] for row in read_lines(RESULTS)}
    for seed in seeds:
        if seed not in known:
            append_line(RESULTS, run(seed))
    rows = [row for row in read_lines(RESULTS) if row["seed"] in seeds]
    for client, (has, _) in CLIENTS.items():
        scores = [row["clients"][client] for row in rows]
        constant = [row["clients"][client] - row["constant"] for row in rows]
        copy = [row["clients"][client] - max(row["copies"][m] for m in has) for row in rows]
        passed = sum(constant) / len(rows) >= MARGIN and sum(copy) > 0
        print(
            f"{client}: {spread(scores)}; above the constant sentence by {spread(constant)}, above "
            f"the best copy by {spread(copy)}: {'as aimed at' if passed else 'MISSED'}"
        )


if __name__ == "__main__":
    main()
