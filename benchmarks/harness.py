"""What the benchmarks share: watched processes, files of JSON lines, and where a figure is from."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

__all__ = [
    "REPOSITORY",
    "Clock",
    "Ran",
    "append_line",
    "commit",
    "hardware",
    "process_pss",
    "read_lines",
    "run",
    "spread",
    "tree_pss",
]

REPOSITORY = Path(__file__).resolve().parents[1]


def commit() -> str:
    """Return the commit that is checked out; ``-dirty`` if what runs differs from it.

    Results and documents do not run, and a benchmark is just writing some.
    """

    def git(*words: str) -> str:
        ran = subprocess.run(
            ["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        return ran.stdout.strip()

    changed = git("diff", "--name-only", "HEAD", "--", ".", ":!benchmarks/results", ":!*.md")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def hardware() -> str:
    """Return processor, cores, memory and the version of torch in one line."""
    import torch

    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((f.partition(":")[2].strip() for f in facts if f.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB, {gpu}, torch {torch.__version__}"


class Clock:
    """What a run took, from here on, and where it ran."""

    def __init__(self) -> None:
        """Start."""
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def told(self) -> dict[str, Any]:
        """Return the seconds on the wall and of the processor, the commit and the hardware.

        The processor's do not depend on what else the machine does.
        """
        return {
            "seconds": round(time.perf_counter() - self._wall, 1),
            "processor_seconds": round(time.process_time() - self._processor, 1),
            "commit": commit(),
            "hardware": hardware(),
        }


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON lines of a file; none if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.strip()]


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a file as a JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def spread(values: Sequence[float], form: str = "{:.3f}") -> str:
    """Return the median of some values, and their minimum and maximum, as text."""
    low, high = form.format(min(values)), form.format(max(values))
    return f"{form.format(median(values))} ({low}-{high})"


def _tree(pid: int) -> Iterator[int]:
    """Yield a process and all below it."""
    yield pid
    with contextlib.suppress(OSError):  # it has ended meanwhile
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in task.read_text().split():
                yield from _tree(int(child))


def process_pss(pid: int) -> int:
    """Return the proportional set size of a process in bytes; 0 if it has ended.

    Of a page that n processes share each counts one n-th, so that the sum is what they take
    together.
    """
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
        return 1024 * int(rollup.partition("\nPss:")[2].split(maxsplit=1)[0])
    except (OSError, IndexError, ValueError):
        return 0


def tree_pss(pid: int) -> int:
    """Return the proportional set size of a process and all below it, in bytes."""
    return sum(map(process_pss, _tree(pid)))


class Ran:
    """What a watched process said and took.

    Attributes:
        lines: Its standard output.
        seconds: From start to end.
        peak: Largest proportional set size of its process tree that was seen, in bytes.
        load: Load average of the machine at the start, over a minute.
    """

    def __init__(self, lines: list[str], seconds: float, peak: int, load: float) -> None:
        """Take the facts."""
        self.lines, self.seconds, self.peak, self.load = lines, seconds, peak, load


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    limit: float = 3600.0,
    interval: float = 0.2,
    look: Callable[[int], int] = tree_pss,
) -> Ran:
    """Run a command from the repository's root, on one thread a process, and watch its memory.

    Args:
        command: The command.
        environment: Variables beside those of this process.
        limit: Seconds after which it is killed.
        interval: Seconds between two looks at the memory: a shorter peak can be missed.
        look: What is looked at.

    Raises:
        RuntimeError: If it fails or takes too long; with the end of what it said.
    """
    load, began, peak = os.getloadavg()[0], time.perf_counter(), 0
    path = f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"  # this checkout, whatever is installed
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8") as err,
    ):
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **fixed, **(environment or {})},
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        timer = threading.Timer(limit, process.kill)
        timer.start()
        try:
            while process.poll() is None:
                peak = max(peak, look(process.pid))
                time.sleep(interval)
        finally:
            timer.cancel()
            # Workers of Ray outlive a simulation now and then, and would slow down who comes next.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise RuntimeError("\n".join(err.read().splitlines()[-5:]))
        return Ran(out.read().splitlines(), time.perf_counter() - began, peak, load)
