"""Quality of ML-ECS, its ablations and the baselines on real data, over settings and seeds.

    python benchmarks/quality.py --root PATH/TO/urfd [--study main ablation] [--quick]

Every case is a run of `cli.py fit` in a process of its own, on one thread, as many at a time as
there are cores. One JSON line is kept for each case, so that a matrix that was stopped goes on
where it was; delete the file to begin anew. All methods get the same data, models, steps, rounds,
learning rate and seeds.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
SEEDS = (27, 34, 46, 52, 93)

Options = Mapping[str, Any]
"""Dotted keys of the configuration, and their values."""


def _mlecs(**init_args: Any) -> dict[str, Any]:
    return {"algorithm": "MLECS"} | {f"algorithm.init_args.{k}": v for k, v in init_args.items()}


ALL = ["ccl", "amt", "mma", "se_ccl"]
ALGORITHMS: dict[str, Options] = {
    "ML-ECS": _mlecs(),
    **{
        name: {"algorithm": name}
        for name in ("FedAvg", "StandalonePublic", "Standalone", "Centralized")
    },
}
ABLATIONS: dict[str, Options] = {
    **{f"without {part}": _mlecs(components=[c for c in ALL if c != part]) for part in ALL},
    **{f"only {part}": _mlecs(components=[part]) for part in ALL},
    "backbone's representation": _mlecs(representation="backbone"),
    "mix 0.5": _mlecs(adapter_mix=0.5),
    "public first": _mlecs(order="public_first"),
    "stack": _mlecs(aggregation="stack"),
    "svd": _mlecs(aggregation="svd"),
    "all negatives": _mlecs(class_aware=False),
}


def _drawn(count: int, rate: float) -> Options:
    return {"clients": {"count": count, "modality_rate": rate, "seed": 0}}


URFALL = "configs/urfall/mlecs.yaml"
DIGITS = "configs/quickstart.yaml"
SETTINGS: dict[str, tuple[str, Options]] = {
    "urfall": (URFALL, {}),
    **{f"urfall rate {rate}": (URFALL, _drawn(5, rate)) for rate in (0.5, 0.7, 0.9)},
    **{f"urfall {count} clients": (URFALL, _drawn(count, 0.7)) for count in (3, 7)},
    "digits": (DIGITS, {}),
    "digits rate 0.7": (DIGITS, _drawn(5, 0.7)),
}
STUDIES: dict[str, tuple[Iterable[str], Mapping[str, Options]]] = {
    "main": (("urfall",), ALGORITHMS),
    "settings": ([name for name in SETTINGS if name not in ("urfall", "digits")], ALGORITHMS),
    "digits": (("digits",), ALGORITHMS),
    "ablation": (("urfall", "digits"), ABLATIONS),
}


class Case(NamedTuple):
    """One run: a label, a setting and a seed, and what they mean in the configuration."""

    algorithm: str
    setting: str
    seed: int
    config: str
    options: Options

    @property
    def key(self) -> str:
        """What makes this run what it is; a changed configuration is another case."""
        text = (REPOSITORY / self.config).read_text() + json.dumps(self.options, sort_keys=True)
        return hashlib.sha256(f"{self.seed}/{text}".encode()).hexdigest()[:16]

    def command(self, folder: str) -> list[str]:
        """Return the command line of the run."""
        fixed = {
            "seed_everything": self.seed,
            "trainer.accelerator": "cpu",
            "trainer.check_val_every_n_rounds": 0,
            "trainer.enable_checkpointing": False,
            "trainer.enable_progress_bar": False,
            "trainer.default_root_dir": folder,
            "trainer.name": "case",
        }
        command = [sys.executable, "cli.py", "fit", "--config", self.config]
        for name, value in {**self.options, **fixed}.items():
            command += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
        return command


def run(case: Case, threads: int) -> dict[str, Any]:
    """Run a case and return its line.

    Raises:
        RuntimeError: If the run fails; with the end of what it said.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(
            case.command(folder),
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            raise RuntimeError("\n".join(ran.stderr.splitlines()[-5:]))
        summary = json.loads((Path(folder) / "case/version_0/summary.json").read_text())
        metrics = (Path(folder) / "case/version_0/metrics.csv").read_text()
    return {
        **{"algorithm": case.algorithm, "setting": case.setting, "seed": case.seed},
        **{"key": case.key, "config": case.config, "options": case.options},
        **{"rounds": summary["rounds"], "seconds": round(time.perf_counter() - began, 1)},
        **{"commit": _commit(), "summary": summary, "metrics": metrics},
    }


def _commit() -> str:
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.strip() or "unknown"


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file; none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def matrix(studies: Sequence[str], seeds: Sequence[int], root: Path, extra: Options) -> list[Case]:
    """Return the cases of the studies, seed by seed, so that a matrix cut short is balanced."""
    cases: dict[str, Case] = {}
    for seed in seeds:
        for study in studies:
            settings, algorithms = STUDIES[study]
            for setting in settings:
                config, options = SETTINGS[setting]
                data = {"data.init_args.root": str(root)} if config == URFALL else {}
                for label, method in algorithms.items():
                    case = Case(
                        label, setting, seed, config, {**method, **options, **data, **extra}
                    )
                    cases[case.key] = case
    return list(cases.values())
