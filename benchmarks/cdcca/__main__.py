"""CD-CCA on two streams of domains: its parts, its rivals, and quality against bytes.

    python -m benchmarks.cdcca --root PATH/TO/urfd --out FILE [--streams ...] [--arms ...]
    python -m benchmarks.cdcca --out FILE --quick
    python -m benchmarks.cdcca --out FILE --table
    python -m benchmarks.cdcca --cost

Registered before the first run:

Setting. One device is carried through the domains of configs/quickstart_cdcca.yaml (bold, light and
bold digits) and of configs/urfall/cdcca.yaml (seven scenes). Encoders give several tokens of 16
features: 16 of an image and one of each vector of the digits, 8 of each series of UR Fall. All arms
of a seed go on from the same warm-up.

Seeds. 27, 34, 46, 52, 93 in this order, as many as the time allows. --quick takes the digits with
the seeds 1, 2 and 3, which nobody had looked at, and the arms that three questions need: whether
AKD is above the teacher's words; whether uncertain samples or tokens are above random ones at rho
0.25; and how near CD-CCA comes to full transfer at 20 times fewer bytes, beside its rivals.

Time. A run takes 5 to 23 s of the processor on the digits and 12 to 15 s on UR Fall: 7 minutes in
all for --quick, about an hour for everything, 40 minutes with --jobs 2.

Score. ``present``: macro-F1 on the domain where the device is, at the end of its rounds there, mean
over the domains. Differences are by seed, with Student's 95 % interval.

Rule. A default of CDCCA changes only where an arm is above today's default with an interval above
zero on both streams, so that --quick changes none. Of a rival's two learning rates the better mean
counts, although it is chosen on the test scores: that favours the rival.

One JSON line a run, on one thread; runs that the file holds are left out, so that a study that was
stopped can be gone on with. --jobs sets how many seeds run at a time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cdcca.arms import ARMS, MAIN, PAIRS, QUICK, STREAMS
from benchmarks.cdcca.study import complete, cost
from benchmarks.harness import REPOSITORY, read_lines

SEEDS, QUICK_SEEDS = (27, 34, 46, 52, 93), (1, 2, 3)
OUT = REPOSITORY / "benchmarks/results/cdcca.jsonl"


def _interval(values: list[float]) -> str:
    from scipy.stats import t

    mean, n = statistics.mean(values), len(values)
    if n < 2:
        return f"{mean:+.3f}"
    half = t.ppf(0.975, n - 1) * statistics.stdev(values) / n**0.5
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


def table(rows: list[dict[str, Any]]) -> str:
    """Return means with standard deviations, and the differences of interest, as Markdown."""
    said = {
        key: ", ".join(sorted({str(row[key]) for row in rows}))
        for key in ("commit", "seed", "hardware")
    }
    minutes = sum(row["processor_seconds"] for row in rows) / 60
    origin = (
        f"Commit {said['commit']}; seeds {said['seed']}; {len(rows)} runs on one thread each, "
        f"{minutes:.1f} minutes of the processor in all; {said['hardware']}."
    )
    by_arm: dict[tuple[str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        by_arm[row["stream"], row["arm"]][row["seed"]] = row
    columns, lines = ("present", "final", "forgetting", "whole"), [origin, ""]
    for stream in STREAMS:
        arms = [arm for arm in ARMS if (stream, arm) in by_arm]
        if not arms:
            continue
        # Means over other seeds could not be compared.
        common = set.intersection(*(set(by_arm[stream, arm]) for arm in arms))
        if not common:
            continue
        lines += [f"| {stream} | seeds | {' | '.join(columns)} | up, kB | down, kB |"]
        lines += ["|---" * 8 + "|"]
        for arm in arms:
            own = [row for seed, row in by_arm[stream, arm].items() if seed in common]
            cells = []
            for column in columns:
                values = [row[column] for row in own]
                spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.3f}{spread}")
            cells += [
                f"{statistics.mean(row[way] for row in own) / 1000:.1f}"
                for way in ("uplink", "downlink")
            ]
            lines.append(f"| {arm} | {len(own)} | {' | '.join(cells)} |")
        lines += ["", f"| {stream}: present | against | seeds | difference |", "|---|---|---|---|"]
        for arm, other in PAIRS:
            ours, theirs = by_arm.get((stream, arm), {}), by_arm.get((stream, other), {})
            if both := sorted(ours.keys() & theirs.keys()):
                gaps = [ours[seed]["present"] - theirs[seed]["present"] for seed in both]
                lines.append(f"| {arm} | {other} | {len(both)} | {_interval(gaps)} |")
        lines.append("")
    return "\n".join(lines).strip()


def main() -> None:
    """Run what is missing, or print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--root", help="folder of the UR Fall files")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--streams", nargs="+", default=["digits", "urfall"], choices=list(STREAMS))
    parser.add_argument("--arms", nargs="+", default=list(MAIN), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--quick", action="store_true", help="digits, seeds 1 to 3, fewer arms")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, one process each")
    parser.add_argument("--table", action="store_true", help="run nothing, print what there is")
    parser.add_argument("--cost", action="store_true", help="measure what sampling costs a device")
    parser.add_argument("--write", type=Path, nargs="*", default=[], help="documents with markers")
    args = parser.parse_args()
    if args.quick:
        args.streams, args.arms, args.seeds = ["digits"], list(QUICK), list(QUICK_SEEDS)
        args.out = (
            args.out.with_name(f"{args.out.stem}-quick.jsonl") if args.out == OUT else args.out
        )
    if set(args.streams) != {"digits"} and args.root is None and not args.table:
        parser.error("--root: the folder of the UR Fall files")
    if args.cost:
        for stream in args.streams:
            print(json.dumps(cost(stream, seed=args.seeds[0], root=args.root), indent=1))
        return
    if not args.table:
        each = partial(complete, streams=args.streams, arms=args.arms, root=args.root, out=args.out)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
            list(pool.map(each, args.seeds))
    text = table(read_lines(args.out))
    print(text)
    for document in args.write:
        from mlecs_lightning.report.markdown import replace_between

        name = "cdcca-quick" if args.quick else "cdcca"
        old = document.read_text(encoding="utf-8")
        document.write_text(replace_between(old, text, name=name), encoding="utf-8")


if __name__ == "__main__":
    main()
