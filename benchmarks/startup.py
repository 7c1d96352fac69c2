"""How long a command takes to answer: the import, and `--help` beside a bare LightningCLI.

    python -m benchmarks.startup [--repeats 5]

Every command runs in a process of its own, in turns, once unmeasured so that all files are in the
page cache. *x bare*: median of the ratios to the bare command of the same turn.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from statistics import median

from benchmarks.harness import REPOSITORY, spread

# What one would write without us, over Lightning's own demonstration classes.
_BARE = """
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, DemoModel
LightningCLI(DemoModel, BoringDataModule)
"""
NOTHING, IMPORT = "`python -c pass`", "`import mlecs_lightning`"
COMMANDS: dict[str, tuple[list[str], str | None]] = {
    NOTHING: (["-c", "pass"], None),
    IMPORT: (["-c", "import mlecs_lightning"], NOTHING),
    "bare LightningCLI, `--help`": (["-c", _BARE, "--help"], None),
    "`cli.py --help`": (["cli.py", "--help"], "bare LightningCLI, `--help`"),
    "bare LightningCLI, `fit --help`": (["-c", _BARE, "fit", "--help"], None),
    "`cli.py fit --help`": (["cli.py", "fit", "--help"], "bare LightningCLI, `fit --help`"),
}
"""The arguments of Python for each name, and the name of what it is compared with."""


def once(arguments: list[str]) -> float:
    """Run Python and return the seconds that it took.

    Not `harness.run`, which looks five times a second: the import takes a fraction of that.
    """
    paths = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)])
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - began


def table(seconds: dict[str, list[float]]) -> str:
    """Return a Markdown table of what was measured, turn by turn, for each name."""
    lines = ["| command | seconds (min-max) | x bare |", "|---|---:|---:|"]
    for name, took in seconds.items():
        other = COMMANDS[name][1]
        ratio = "-"
        if other is not None:
            ratio = f"{median(a / b for a, b in zip(took, seconds[other], strict=True)):.2f}"
        lines.append(f"| {name} | {spread(took)} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    """Measure in turns and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(args.repeats + 1):
        for name, (arguments, _) in COMMANDS.items():
            took = once(arguments)
            if turn:
                seconds[name].append(took)
    print(table(seconds))


if __name__ == "__main__":
    main()
