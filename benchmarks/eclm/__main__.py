"""ECLM under drift, on many devices, and what a sub-model costs, as JSON lines; a rerun goes on.

    python -m benchmarks.eclm devices [--quick] [--write docs/results.md]
    python -m benchmarks.eclm drift --root PATH/TO/urfd --out FILE [--seeds 27 34] [--methods ...]
    python -m benchmarks.eclm cost --out FILE
    python -m benchmarks.eclm table --out FILE

devices: Digits on many devices with a few classes each, against rivals, and the accuracy of
sub-models by their size with and without ability training (`benchmarks/eclm/many.py`).

drift: three devices (configs/urfall/eclm.yaml), four rounds, one drift at a time, from round 1 on.
Each device is judged after every round on the held-out samples of its own scenes as it sees them
then; the score of a run is the mean macro-F1 of devices and rounds from round 1 on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.eclm import many, tables
from benchmarks.eclm.cost import cost
from benchmarks.eclm.drift import METHODS, SCENARIOS, SEEDS, beginning, drift
from benchmarks.harness import REPOSITORY, append_line, read_lines, run
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


Cell = tuple[Any, ...]
Work = dict[Cell, Callable[[], dict[str, Any]]]


def cells(folder: Path, *, quick: bool) -> tuple[Work, Work]:
    """Return what there is to run, first the clouds: of each line its key, and what makes it."""
    form = many.QUICK if quick else many.FULL
    clouds: Work = {}
    every: Work = {}
    for seed in form.seeds:
        for tuned, share in itertools.product(form.tuned, form.shares):
            for arm in many.STAGES:
                work = partial(many.of_size, arm, share, form.devices, seed, folder, tuned=tuned)
                every["size", arm, share, tuned, seed] = work
        for name in form.methods if seed in form.seeds[: form.repeated] else ():
            every["many", name, seed] = partial(many.many, name, seed, form.size, folder)
        for name, count in many.clouds(form, seed):
            clouds["cloud", name, count, seed] = partial(many.cloud, name, count, seed, folder)
    return clouds, every


def key_of(row: dict[str, Any]) -> Cell:
    """Return the key of a line."""
    names = ("kind", "arm", "share", "tuned", "method", "seed")
    return tuple(row[name] for name in names if name in row)


def devices(out: Path, *, quick: bool, jobs: int) -> int:
    """Run the cells that the file lacks; return how many failed."""
    folder, failed = out.with_suffix(".warmups"), 0
    folder.mkdir(parents=True, exist_ok=True)
    done = {key_of(row) for row in read_lines(out)}
    clouds, every = cells(folder, quick=quick)
    todo = {key: work for key, work in every.items() if key not in done}
    context = multiprocessing.get_context("spawn")
    one_thread = {"initializer": torch.set_num_threads, "initargs": (1,)}
    with ProcessPoolExecutor(jobs, mp_context=context, **one_thread) as pool:
        # A cloud is trained before any run that starts from it, so that no two processes train it.
        for works in (clouds, todo) if todo else ():
            running = {pool.submit(work): key for key, work in works.items()}
            for each in as_completed(running):
                try:
                    if row := each.result():
                        keep(out, row)
                except Exception as error:
                    failed += 1
                    print(f"{running[each]}: FAILED: {error}", file=sys.stderr, flush=True)
    return failed


def write(documents: list[Path], rows: list[dict[str, Any]], *, quick: bool) -> None:
    """Print the tables, and put them between their markers in documents."""
    from mlecs_lightning.report.markdown import replace_between

    for name, block in tables.blocks(rows).items():
        print(f"## {name}\n\n{block}\n")
        marker = f"eclm-{name}-quick" if quick else f"eclm-{name}"
        for document in documents:
            text = document.read_text(encoding="utf-8")
            if f"<!-- {marker}:begin -->" in text:
                text = replace_between(text, block, name=marker)
                document.write_text(text, encoding="utf-8")


def main() -> int:
    """Run what is not in the file yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["devices", "drift", "cost", "table"])
    parser.add_argument("--root", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--scenarios", nargs="+", default=[s for s in SCENARIOS if s != "none"])
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.5, 0.25])
    parser.add_argument("--quick", action="store_true", help="of devices: in short")
    parser.add_argument("--tables", action="store_true", help="of devices: run nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", nargs="*", type=Path, default=[], help="documents with markers")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child:
        print(json.dumps(cost(args.shares[0])))
        return 0
    if args.what == "devices":
        name = "eclm-devices-quick.jsonl" if args.quick else "eclm-devices.jsonl"
        out = args.out or REPOSITORY / "benchmarks/results" / name
        failed = 0 if args.tables else devices(out, quick=args.quick, jobs=args.jobs)
        write(args.write, read_lines(out), quick=args.quick)
        return 1 if failed else 0
    if args.out is None:
        parser.error("--out: the file of the lines")
    rows = read_lines(args.out)
    if args.what == "table":
        table(rows)
    elif args.what == "cost":
        for share in args.shares:
            command = [sys.executable, "-m", "benchmarks.eclm", "cost", "--child"]
            ran = run([*command, "--out", str(args.out), "--shares", str(share)])
            keep(args.out, json.loads(ran.lines[-1]))
    else:
        drifts(args, rows)
    return 0


def drifts(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Run the drifts that the file lacks."""
    done = {(r["scenario"], r["method"], r["seed"]) for r in rows if r["kind"] == "drift"}
    pools, folder = URFall(args.root).load_pools(), args.out.with_suffix(".warmups")
    folder.mkdir(exist_ok=True)
    for seed in args.seeds:
        for scenario in args.scenarios:
            for name in args.methods:
                if (scenario, name, seed) in done:
                    continue
                start = beginning(name, seed, args.root, pools, folder)
                keep(args.out, drift(scenario, name, seed, args.root, pools, start=start))


def keep(out: Path, row: dict[str, Any]) -> None:
    """Append a row and print its figures."""
    print(json.dumps({k: v for k, v in row.items() if not isinstance(v, dict | list)}), flush=True)
    append_line(out, row)


if __name__ == "__main__":
    sys.exit(main())
