"""How a round of ML-ECS grows with clients, modalities, public samples and rounds.

    python -m benchmarks.scaling [--axes clients modalities public rounds] [--repeats 2]

Everything but one number is held: 8 clients with all of 2 modalities, 64 public samples, 3 rounds;
vectors of 8 values, a GPT-2 of 2 layers and width 64, batches of 8, four private steps. A pass over
public data is one epoch of them. *Seconds* are those of a round after the first, except on the axis
*rounds*: of all rounds together. *Memory* is the peak proportional set size of all processes. On
one and on two processes (torchrun), each on one thread; clients' states in memory.

A least-squares line is drawn through the medians: *fixed* is its value at 0, *each* its slope,
*off* the largest distance of a median from it, relative to the median. Beyond 10 % it is called no
line, and *bend* says how: the slope of the last segment over that of the first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from benchmarks import harness
from benchmarks.peers import workload

BASE = {"clients": 8, "modalities": 2, "public": 64, "rounds": 3}
AXES: dict[str, Sequence[int]] = {
    "clients": (4, 8, 16, 32),
    "modalities": (1, 2, 4, 8),
    "public": (32, 64, 128, 256),
    "rounds": (2, 4, 8, 16),
}
BATCH, STEPS, PRIVATE = 8, 4, 16
STRAIGHT = 0.1


def train(sizes: Mapping[str, int], folder: Path, clock: workload.Clock) -> None:
    """Run one case in this process.

    Args:
        sizes: What differs from `BASE`.
        folder: Holds the backbone.
        clock: Told when a round has ended.
    """
    import torch

    from benchmarks.peers import ours
    from mlecs_lightning.algorithms.base import Steps
    from mlecs_lightning.algorithms.mlecs.algorithm import MLECS
    from mlecs_lightning.clients import ClientSettings, Federation
    from mlecs_lightning.data.base import FederatedDataModule, Pools
    from mlecs_lightning.data.table import SampleTable
    from mlecs_lightning.federated import FederatedTrainer
    from mlecs_lightning.settings import (
        BackboneSettings,
        ConnectorSettings,
        LoraSettings,
        ModelSettings,
    )
    from mlecs_lightning.types import ModalitySpec

    sizes = {**BASE, **sizes}
    names = tuple(f"m{k}" for k in range(sizes["modalities"]))
    clients = [workload.name_of(c) for c in range(sizes["clients"])]

    def table(rows: Sequence[str]) -> SampleTable:
        generator = torch.Generator().manual_seed(len(rows))
        n = len(rows)
        words = torch.randint(5, 100, (n, 7), generator=generator).tolist()
        return SampleTable(
            ids=tuple(f"{row}/{i}" for i, row in enumerate(rows)),
            modalities=names,
            inputs={m: torch.randn(n, 8, generator=generator) for m in names},
            present=torch.ones(n, len(names), dtype=torch.bool),
            instructions=("w1 w2 w3 w4",) * n,
            targets=tuple(" ".join(f"w{w}" for w in each) for each in words),
            labels=torch.zeros(n, dtype=torch.int64),
            domains=tuple(rows),
            groups=tuple(f"{row}/{i}" for i, row in enumerate(rows)),
        )

    class Synthetic(FederatedDataModule):
        """Noise of any number of modalities: what a step costs does not depend on values."""

        modalities = {m: ModalitySpec("vector", (8,)) for m in names}  # noqa: RUF012
        classes = ()

        def load_pools(self) -> Pools:
            """See `FederatedDataModule`."""
            private = table([c for c in clients for _ in range(PRIVATE)])
            return Pools(table(["public"] * sizes["public"]), private, table(clients[:1] * BATCH))

        def read_label(self, text: str) -> int | None:
            """See `FederatedDataModule`."""
            return None

        def pretraining_pairs(self) -> list[tuple[str, str]]:
            """See `FederatedDataModule`."""
            return []

    model = ModelSettings(
        backbone=BackboneSettings(str(folder / "backbone")),
        lora=LoraSettings(target_modules=workload.TARGETS),
        connector=ConnectorSettings(64, 4),
    )
    epoch = sizes["public"] // BATCH
    algorithm = MLECS(steps=Steps(warmup=1, public=epoch, private=STEPS, server=epoch))
    settings = Federation(
        model, model, {c: ClientSettings(list(names), domains=[c]) for c in clients}
    )
    with tempfile.TemporaryDirectory() as root, contextlib.suppress(ours.Ended):
        FederatedTrainer(
            max_rounds=sizes["rounds"],
            accelerator="cpu",
            check_val_every_n_rounds=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            logger=False,
            callbacks=[ours.Watch(clock, sizes["rounds"])],
            default_root_dir=root,
        ).fit(algorithm, Synthetic(batch_size=BATCH, val_fraction=0.0), settings)


def one(axis: str, value: int, processes: int, *, folder: Path) -> dict[str, Any]:
    """Run one case in processes of its own and return its line."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    ran = harness.run(
        [
            *(sys.executable, *(launch if processes > 1 else [])),
            *(
                "-m",
                "benchmarks.scaling",
                "--child",
                json.dumps({axis: value}),
                "--folder",
                str(folder),
            ),
        ]
    )
    said = json.loads(next(line for line in reversed(ran.lines) if line.startswith("{")))
    return {
        **{"axis": axis, "value": value, "processes": processes, **said},
        **{"peak": ran.peak, "load": round(ran.load, 2), "commit": harness.commit()},
    }


def complete(args: argparse.Namespace) -> None:
    """Run what the file lacks: all cases once, then all of them again."""
    workload.make(args.folder, workload.Sizes(clients=1))
    held = [(r["axis"], r["value"], r["processes"]) for r in harness.read_lines(args.out)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for turn in range(args.repeats):
        for axis in args.axes:
            for value in AXES[axis]:
                for processes in args.processes:
                    key = (axis, value, processes)
                    if held.count(key) > turn:
                        continue
                    line = one(*key, folder=args.folder)
                    held.append(key)
                    harness.append_line(args.out, line)
                    print(f"turn {turn} {key}: {line['rounds'][-1]:.3f} s", file=sys.stderr)


# Tables -------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A least-squares line through points.

    Attributes:
        fixed: Value at 0.
        each: Slope.
        off: Largest distance of a point from the line, relative to the point.
        bend: Slope of the last segment over that of the first.
    """

    fixed: float
    each: float
    off: float
    bend: float

    @classmethod
    def through(cls, x: Sequence[float], y: Sequence[float]) -> Line:
        """Fit a line to at least three points of rising ``x``."""
        each, fixed = np.polyfit(x, y, 1)
        off = max(abs(fixed + each * a - b) / abs(b) for a, b in zip(x, y, strict=True))
        first, last = (y[1] - y[0]) / (x[1] - x[0]), (y[-1] - y[-2]) / (x[-1] - x[-2])
        return cls(float(fixed), float(each), off, last / first if first else float("inf"))

    def __str__(self) -> str:
        """Return the line in words."""
        said = f"{self.fixed:.3g} + {self.each:.3g} each, off {100 * self.off:.0f} %"
        return said if self.off <= STRAIGHT else f"no line (bend {self.bend:.2f}): {said}"


def seconds(line: Mapping[str, Any]) -> float:
    """Return what a run is judged by: a round, or all rounds where these are what varies."""
    rounds: list[float] = line["rounds"]
    return sum(rounds) if line["axis"] == "rounds" else median(rounds[1:])


def table(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return a Markdown table of all axes, with the lines below each."""
    texts = [
        "| axis | value | processes | seconds (min-max) | memory, MiB |",
        "|---|---:|---:|---:|---:|",
    ]
    fits = ["", "| axis | processes | seconds | memory, MiB |", "|---|---:|---|---|"]
    held = list(lines)
    for axis in dict.fromkeys(r["axis"] for r in held):
        for processes in sorted({r["processes"] for r in held if r["axis"] == axis}):
            points: dict[int, tuple[float, float]] = {}
            own = [r for r in held if (r["axis"], r["processes"]) == (axis, processes)]
            for value in sorted({r["value"] for r in own}):
                runs = [r for r in own if r["value"] == value]
                took, peaks = [seconds(r) for r in runs], [r["peak"] / 2**20 for r in runs]
                points[value] = median(took), median(peaks)
                texts.append(
                    f"| {axis} | {value} | {processes} | {harness.spread(took)} "
                    f"| {median(peaks):.0f} |"
                )
            if len(points) > 2:
                both = [Line.through([*points], column) for column in zip(*points.values())]  # noqa: B905
                fits.append(f"| {axis} | {processes} | {both[0]} | {both[1]} |")
    return "\n".join([*texts, *fits])


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    results = harness.REPOSITORY / "benchmarks/results"
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=results / "loop/scaling", help="backbone")
    parser.add_argument("--out", type=Path, default=results / "scaling.jsonl")
    parser.add_argument("--tables", action="store_true", help="run nothing, print what there is")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        import torch

        torch.set_num_threads(1)
        clock = workload.Clock()
        train(args.child, args.folder, clock)
        if not int(os.environ.get("RANK", "0")):
            print(json.dumps({"rounds": clock.rounds, "cpu": clock.cpus}), flush=True)
        return
    if not args.tables:
        complete(args)
    print(table(harness.read_lines(args.out)))


if __name__ == "__main__":
    main()
