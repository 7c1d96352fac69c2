"""Several real processes for the tests of what they tell each other."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

# Joins its peers through a file: no port that could be taken.
PROCESS = """
import runpy, sys
import torch
import torch.distributed as dist
script, store, out, rank, size = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(size))
torch.save(runpy.run_path(script)["results"](int(rank), int(size)), out)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.fixture(scope="session")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SimpleNamespace]:
    """Calls ``results(rank, size)`` of a script in several processes, and in this one alone.

    ``ranks`` are the results of the processes, ``alone`` is that of (0, 1).
    """

    def call(script: Path, size: int = 2) -> SimpleNamespace:
        folder = tmp_path_factory.mktemp(script.stem)
        outs = [folder / f"{rank}.pt" for rank in range(size)]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    PROCESS,
                    *map(str, (script, folder / "store", out, n, size)),
                ],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            for n, out in enumerate(outs)
        ]
        import torch

        try:
            alone: dict[str, Any] = runpy.run_path(str(script))["results"](0, 1)
            errors = [process.communicate(timeout=200)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0] * size, errors
        ranks = [torch.load(out, weights_only=False) for out in outs]
        return SimpleNamespace(ranks=ranks, alone=alone)

    return call
