"""ECLM under drift on UR Fall, and what a sub-model costs, as JSON lines; a rerun goes on.

    python -m benchmarks.eclm drift --root PATH/TO/urfd --out FILE [--seeds 27 34] [--methods ...]
    python -m benchmarks.eclm cost --out FILE
    python -m benchmarks.eclm table --out FILE

Three devices (configs/urfall/eclm.yaml), four rounds, one drift at a time, from round 1 on. Each
device is judged after every round on the held-out samples of its own scenes as it sees them then;
the score of a run is the mean macro-F1 of devices and rounds from round 1 on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.eclm.cost import cost
from benchmarks.eclm.drift import METHODS, SCENARIOS, SEEDS, drift, warm_up
from benchmarks.harness import append_line, read_lines, run
from mlecs_lightning import URFall


def table(rows: list[dict[str, Any]]) -> None:
    """Print means and standard deviations over the seeds."""
    for scenario in SCENARIOS:
        for name in (*METHODS, "ECLM, refresh"):
            mine = [
                r
                for r in rows
                if r["kind"] == "drift" and (r["scenario"], r["method"]) == (scenario, name)
            ]
            if not mine:
                continue
            scores = [r["macro_f1"] for r in mine]
            spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
            up, down = (
                statistics.fmean(r[f"{way}link_bytes"] for r in mine) / 1e6
                for way in ("up", "down")
            )
            print(
                f"| {scenario} | {name} | {statistics.fmean(scores):.3f} ± {spread:.3f} "
                f"| {up:.2f} MB | {down:.2f} MB | {len(mine)} |"
            )
    for row in rows:
        if row["kind"] == "cost":
            print(row)


def main() -> None:
    """Run what is not in the file yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["drift", "cost", "table"])
    parser.add_argument("--root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--scenarios", nargs="+", default=[s for s in SCENARIOS if s != "none"])
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.5, 0.25])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child:
        print(json.dumps(cost(args.shares[0])))
        return
    rows = read_lines(args.out)
    if args.what == "table":
        table(rows)
        return
    if args.what == "cost":
        for share in args.shares:
            command = [sys.executable, "-m", "benchmarks.eclm", "cost", "--child"]
            ran = run([*command, "--out", str(args.out), "--shares", str(share)])
            keep(args.out, json.loads(ran.lines[-1]))
        return
    done = {(r["scenario"], r["method"], r["seed"]) for r in rows if r["kind"] == "drift"}
    pools, folder = URFall(args.root).load_pools(), args.out.with_suffix(".warmups")
    folder.mkdir(exist_ok=True)
    for seed in args.seeds:
        for scenario in args.scenarios:
            for name in args.methods:
                if (scenario, name, seed) in done:
                    continue
                warm = warm_up(name, seed, args.root, pools, folder)
                keep(args.out, drift(scenario, name, seed, args.root, pools, warm=warm))


def keep(out: Path, row: dict[str, Any]) -> None:
    """Append a row and print its figures."""
    print(json.dumps({k: v for k, v in row.items() if not isinstance(v, dict | list)}), flush=True)
    append_line(out, row)


if __name__ == "__main__":
    main()
