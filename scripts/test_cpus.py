"""Run the tests as other processors and numbers of threads would compute them.

    python scripts/test_cpus.py [ARGUMENTS OF PYTEST]

Sums in another order and kernels of another instruction set differ in the last bit, and a model
that trained on them ends elsewhere. So each setting makes pocket models of its own, too. A setting
that fails does not stop the others; it is named at the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "cpus"
WORKERS = 2

# What torch's own kernels, oneDNN and MKL may use of this processor.
PROCESSORS: dict[str, dict[str, str]] = {
    "native": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "COMPATIBLE",
    },
    "default": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
    },
}


def run(processor: str, threads: int, args: list[str]) -> bool:
    """Run the tests in one setting; return whether they passed."""
    cache = CACHE / f"{processor}-{threads}"
    shutil.rmtree(cache / "pocket", ignore_errors=True)
    setting = {
        "OMP_NUM_THREADS": str(threads),
        # A thread that waits by spinning takes its core from the other worker.
        "OMP_WAIT_POLICY": "PASSIVE",
        "MLECS_CACHE": str(cache),
        **PROCESSORS[processor],
    }
    command = [sys.executable, "-m", "pytest", "-n", str(WORKERS), "--dist", "worksteal", *args]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **setting}).returncode == 0


def main(args: list[str]) -> int:
    """Run the tests in every setting; return 0 if they passed in all."""
    failed = []
    for processor, threads in product(PROCESSORS, (1, 2)):
        name = f"{processor}, {threads} thread{'s' if threads > 1 else ''}"
        print(f"\n=== {name}", flush=True)
        if not run(processor, threads, args):
            failed.append(name)
    print(f"\nfailed: {'; '.join(failed)}" if failed else "\npassed in every setting")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
