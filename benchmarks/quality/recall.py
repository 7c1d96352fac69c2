"""Study ``missing-class``: who knows the classes that the server cannot teach.

    python -m benchmarks.quality.recall [--write docs/results.md]

The recall of single classes on the samples of all domains: a mean over splits, clients and classes,
by what the public data have of a class and how many private samples of it a client has.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
import yaml

from benchmarks.harness import REPOSITORY, read_lines
from benchmarks.quality.cases import STUDIES
from benchmarks.quality.settings import NO_LABEL, NO_SAMPLE, SETTINGS
from benchmarks.quality.study import origin, write

STUDY = "missing-class"
FEW = 5


class Held(NamedTuple):
    """What is there to learn a class from: in public, and of one's own."""

    public: str
    own: str


def samples(setting: str) -> dict[str, list[int]]:
    """Return the number of private training samples of each class, by client."""
    from mlecs_lightning import Digits
    from mlecs_lightning.types import ClientProfile

    config, options = SETTINGS[setting]
    content = yaml.safe_load((REPOSITORY / config).read_text(encoding="utf-8"))
    dealt = {key: options[f"data.init_args.{key}"] for key in ("alpha", "seed")}
    data = Digits(**{**content["data"]["init_args"], **dealt})
    clients = content["clients"].items()
    data.attach({name: ClientProfile(tuple(each["modalities"])) for name, each in clients})
    tables = {name: data.private(name).labels for name, _ in clients}
    return {name: torch.bincount(t, minlength=10).tolist() for name, t in tables.items()}


def recalls(
    confusion: Mapping[str, Any], held: Mapping[str, list[int]]
) -> Iterator[tuple[Held, float]]:
    """Yield what there was to learn a class from, and its recall, for all parties of a run."""
    parties = {**confusion["clients"], "server": confusion["server"]}
    for party, rows in parties.items():
        for n, (name, row) in enumerate(zip(confusion["classes"], rows, strict=True)):
            public = "unlabelled" if name in NO_LABEL else "none" if name in NO_SAMPLE else "labels"
            own = "server" if party not in held else _size(held[party][n])
            yield Held(public, own), row[n] / sum(row)


def _size(count: int) -> str:
    return "none" if count == 0 else f"1 to {FEW}" if count <= FEW else "more"


def table(out: Path) -> str:
    """Return the Markdown of what has been run."""
    from mlecs_lightning.report.markdown import markdown_table

    settings, algorithms = STUDIES[STUDY][:2]
    lines = [line for line in read_lines(out) if line["setting"] in settings]
    lines = [line for line in lines if line["algorithm"] in algorithms]
    held = {setting: samples(setting) for setting in settings}
    found: dict[Held, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        for what, recall in recalls(line["summary"]["confusion"], held[line["setting"]]):
            found[what][line["algorithm"]].append(recall)
    labels = [name for name in algorithms if any(line["algorithm"] == name for line in lines)]
    runs = {name: sum(line["algorithm"] == name for line in lines) for name in labels}
    made = origin(out, {(e["setting"], e["algorithm"], e["seed"]) for e in lines}, study=STUDY)
    head = ["public samples of a class", "own samples of it", "means of", *labels]
    rows = [["runs", "", "", *(str(runs[name]) for name in labels)]]
    for public in ("labels", "unlabelled", "none"):
        for own in ("none", f"1 to {FEW}", "more", "server"):
            cells = found[Held(public, own)]
            means = [f"{fmean(cells[name]):.3f}" if cells[name] else "n/a" for name in labels]
            rows.append([public, own, f"{max(map(len, cells.values()))}", *means])
    shown = markdown_table(head, rows, text=[True, True, False, *(False for _ in labels)])
    return f"{made}\n\n{shown}".strip()


def main() -> None:
    """Print the table, and write it into documents."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks/results/quality.jsonl")
    parser.add_argument("--write", nargs="*", type=Path, default=[], help="documents with markers")
    args = parser.parse_args()
    text = table(args.out)
    print(text)
    for document in args.write:
        write(document, {f"{STUDY}-recall": text})


if __name__ == "__main__":
    main()
