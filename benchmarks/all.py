"""All benchmarks of speed and memory, printed and written into a document.

    make bench
    python -m benchmarks.all [NAME ...] [--write docs/results.md]

Each prints Markdown; with ``--write`` it goes between the markers ``<!-- NAME:begin -->`` and
``<!-- NAME:end -->``, below a line that names command, commit, time, hardware and load.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import harness

BENCHMARKS: dict[str, tuple[str, ...]] = {
    "startup": ("benchmarks.startup",),
    "volume": ("benchmarks.volume",),
    "memory": ("benchmarks.memory",),
    "cohorts": ("benchmarks.peers.cohorts",),
    "cohort-methods": ("benchmarks.cohorts",),
    # With 100 clients it would take half an hour more.
    "cohort-rounds": ("benchmarks.cohort_rounds", "--clients", "5", "20"),
    "cohort-memory": ("benchmarks.cohort_rounds", "--memory"),
    "loop": ("benchmarks.loop",),
    "scaling": ("benchmarks.scaling",),
    "profile": ("benchmarks.profile_round",),
    "throughput": ("benchmarks.throughput",),
}


def block(name: str, extra: Sequence[str] = ()) -> str:
    """Run a benchmark and return its output below a line that says of what it is.

    Raises:
        RuntimeError: If it fails.
    """
    module, *arguments = BENCHMARKS[name]
    arguments += extra
    loads = [os.getloadavg()[0]]
    ran = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=harness.REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"benchmark {name!r} failed")
    loads.append(os.getloadavg()[0])
    command = shlex.join(["python", "-m", module, *arguments])
    when = datetime.now(UTC).strftime("%Y-%m-%d")
    about = f"`{command}`, commit {harness.commit()}, {when}; {harness.hardware()}; load average "
    about += f"{loads[0]:.1f} at the start, {loads[1]:.1f} at the end."
    return f"{about}\n\n{ran.stdout.strip()}"


def write(document: Path, name: str, text: str) -> None:
    """Put a text between the markers of its name.

    Raises:
        MatrixError: If the markers are not there.
    """
    from mlecs_lightning.report.markdown import replace_between

    document.write_text(
        replace_between(document.read_text(encoding="utf-8"), text, name=name), encoding="utf-8"
    )


def main() -> None:
    """Run what is asked for, print and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=" ".join(BENCHMARKS))
    parser.add_argument("--tables", action="store_true", help="loop, scaling: print what there is")
    parser.add_argument("--write", type=Path, help="a document with markers")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - BENCHMARKS.keys())
    if unknown:
        parser.error(f"unknown benchmarks {unknown}; there are {list(BENCHMARKS)}")
    for name in args.names or BENCHMARKS:
        extra = ["--tables"] if args.tables and name in ("loop", "scaling") else []
        text = block(name, extra)
        print(f"## {name}\n\n{text}\n", flush=True)
        if args.write:
            write(args.write, name, text)


if __name__ == "__main__":
    main()
