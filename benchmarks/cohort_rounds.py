"""What clients that train together gain in a real round, and the memory they take.

    python -m benchmarks.cohort_rounds [--root PATH/TO/urfd] [--clients 5 20 100] [--turns 3]
    python -m benchmarks.cohort_rounds --memory [--cohorts 4 8 16]

*Rounds*: ML-ECS as in configs/quickstart.yaml, or, with ``--root``, as in
configs/urfall/mlecs.yaml, with clients that are drawn (modality rate 0.7) and five steps of each
pass. With ``cohort: 1`` and with ``auto`` in turns, each in a process of its own on one thread; the
seconds are those of the processor in a round after the first, without scoring, and the ratios those
of one turn.

*Memory*: the peak resident set of a run with a LoRA adapter of 11.5 MB and 16 clients, less that of
``cohort: 1``, beside what docs/scale.md says: 9 C P bytes for C clients that train P bytes each.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import harness
from benchmarks.peers.workload import SIZES, Clock, load, make
from mlecs_lightning.callbacks import FederatedCallback

COPIES = 9
"""Of what a client trains, in the formula of docs/scale.md."""
STEPS = {"warmup": 5, "public": 5, "private": 5, "server": 5}
ROUNDS = 3


class Timed(FederatedCallback):
    """Notes what each round takes of the processor, and ends the process after the last one.

    What would follow is the test of all clients, which is not what is measured.
    """

    def __init__(self) -> None:
        """Start."""
        self._clock = Clock()

    def on_round_end(self, *, round: int, metrics: Mapping[str, float]) -> None:
        """See `FederatedCallback`."""
        self._clock.round_ended()
        if len(self._clock.cpus) == ROUNDS:
            print(json.dumps({"cpu": self._clock.cpus}), flush=True)
            raise SystemExit


def rounds(root: Path | None, clients: int, cohort: str) -> float:
    """Run rounds of ML-ECS, and return the processor's seconds of one after the first."""
    config = "configs/quickstart.yaml" if root is None else "configs/urfall/mlecs.yaml"
    with tempfile.TemporaryDirectory() as folder:
        said = _said(
            [
                *("cli.py", "fit", "--config", config, "--algorithm", "MLECS"),
                # Digits by domain leaves no client without samples.
                "--data.init_args.partition=domain"
                if root is None
                else f"--data.init_args.root={root}",
                *("--clients", json.dumps({"count": clients, "modality_rate": 0.7, "seed": 0})),
                *("--algorithm.init_args.steps", json.dumps(STEPS)),
                *("--trainer.max_rounds", str(ROUNDS), "--trainer.cohort", cohort),
                *("--trainer.check_val_every_n_rounds", "0", "--trainer.accelerator", "cpu"),
                *("--trainer.enable_checkpointing", "false", "--trainer.bertscore", "false"),
                *("--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", folder),
                *(
                    "--trainer.callbacks",
                    json.dumps([{"class_path": "benchmarks.cohort_rounds.Timed"}]),
                ),
            ]
        )
    return median(said["cpu"][1:])


def peak(work: Path, cohort: int) -> dict[str, Any]:
    """Train 16 clients in this process, and return the peak of its memory in bytes."""
    from benchmarks.peers import ours

    made = load(work)
    ours.train(made, clients=16, rounds=2, clock=Clock(), cohort=cohort)
    trained = sum(t.nbytes for t in made.adapter.values())
    most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB on Linux
    return {"peak": most, "trained": trained}


def _said(arguments: list[str]) -> dict[str, Any]:
    """Run Python in a process of its own on one thread, and return the line of JSON it prints."""
    ran = harness.run([sys.executable, *arguments], environment={"OMP_NUM_THREADS": "1"})
    said: dict[str, Any] = json.loads(next(x for x in reversed(ran.lines) if x.startswith("{")))
    return said


def speed_table(root: Path | None, clients: list[int], turns: int) -> None:
    """Measure rounds, and print a table."""
    print("| clients | `cohort: 1`, CPU s a round | `cohort: auto` | auto / 1 |")
    print("|---:|---:|---:|---:|", flush=True)
    for count in clients:
        spent: dict[str, list[float]] = {"1": [], "auto": []}
        for _ in range(turns):
            for cohort, each in spent.items():
                each.append(rounds(root, count, cohort))
        ratios = [b / a for a, b in zip(spent["1"], spent["auto"], strict=True)]
        cells = [*map(harness.spread, spent.values()), harness.spread(ratios, "{:.2f}")]
        print(f"| {count} | {' | '.join(cells)} |", flush=True)


def memory_table(folder: Path, cohorts: list[str]) -> None:
    """Measure the memory of cohorts, and print a table."""
    make(folder, SIZES["11.5MB"])
    command = ["-m", "benchmarks.cohort_rounds", "--child", "--folder", str(folder), "--cohorts"]
    alone = _said([*command, "1"])
    print(
        "| C | more than `cohort: 1`, MiB | 9 C P, MiB | off |\n|---:|---:|---:|---:|", flush=True
    )
    for cohort in cohorts:
        more = _said([*command, cohort])["peak"] - alone["peak"]
        said = COPIES * int(cohort) * alone["trained"]
        cells = f"{more / 2**20:.0f} | {said / 2**20:.0f} | {100 * (said / more - 1):+.0f} %"
        print(f"| {cohort} | {cells} |", flush=True)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="folder of the UR Fall data")
    parser.add_argument("--clients", type=int, nargs="+", default=[5, 20, 100])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="measure the memory instead")
    parser.add_argument("--cohorts", nargs="+", default=["4", "8", "16"], help="of the memory")
    results = harness.REPOSITORY / "benchmarks/results/loop/11.5MB"
    parser.add_argument("--folder", type=Path, default=results, help="of the workload")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    root = args.root.resolve() if args.root else None
    if args.child:
        print(json.dumps(peak(args.folder, int(args.cohorts[0]))), flush=True)
    elif args.memory:
        memory_table(args.folder, args.cohorts)
    else:
        speed_table(root, args.clients, args.turns)


if __name__ == "__main__":
    main()
