"""Peak memory of a round against the number of clients.

    python -m benchmarks.memory [--clients 16 256] [--store disk memory]

One round of ML-ECS on Digits with pocket models, one step a pass, each case in its own process:
the peak resident set that the kernel counted (`ru_maxrss`), beside that of the first case. Prints a
Markdown table; with ``--out`` the rows as JSON lines, too.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import REPOSITORY, append_line, run

CONFIG = REPOSITORY / "configs" / "quickstart.yaml"


def measure(clients: int, store: str) -> dict[str, object]:
    """Run one round in this process and return what it took."""
    from mlecs_lightning.cli import FederatedCLI

    steps = dict.fromkeys(("warmup", "public", "private", "server"), 1)
    with tempfile.TemporaryDirectory() as root:
        began = time.perf_counter()
        FederatedCLI(
            [
                *("fit", "--config", str(CONFIG)),
                *("--clients", json.dumps({"count": clients, "modality_rate": 0.7, "seed": 0})),
                *("--data.init_args.partition", "domain"),  # leaves nobody without samples
                *("--algorithm.init_args.steps", json.dumps(steps)),
                *("--trainer.max_rounds", "1", "--trainer.store", store),
                *("--trainer.default_root_dir", root, "--trainer.enable_progress_bar", "false"),
                *("--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1"),
            ]
        )
        seconds = time.perf_counter() - began
        kept = sum(p.stat().st_size for p in Path(root).rglob("*.pt"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kB on Linux
    return {
        **{"clients": clients, "store": store, "peak_mib": round(peak, 1)},
        **{"client_files_mib": round(kept / 2**20, 1), "seconds": round(seconds, 1)},
    }


def main() -> None:
    """Measure every case in its own process and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[16, 256])
    parser.add_argument("--store", nargs="+", default=["disk", "memory"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.clients[0], args.store[0])))
        return
    print("| store | clients | peak, MiB | against the fewest | clients' files, MiB | seconds |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    for store in args.store:
        first = None
        for clients in args.clients:
            command = [sys.executable, "-m", "benchmarks.memory", "--child"]
            ran = run([*command, "--clients", str(clients), "--store", store])
            row = json.loads(ran.lines[-1])
            first = first or row["peak_mib"]
            row["ratio"] = round(row["peak_mib"] / first, 3)
            cells = [row[k] for k in ("peak_mib", "ratio", "client_files_mib", "seconds")]
            print(f"| {store} | {clients} | {' | '.join(map(str, cells))} |", flush=True)
            if args.out:
                append_line(args.out, row)


if __name__ == "__main__":
    main()
