"""CPU seconds of a client in a cohort and alone, under each method.

    python -m benchmarks.cohorts [--clients 8 16] [--batch 8] [--methods CoPLMs CDCCA] [--turns 3]

The models are those of the quickstart, on the digits; all clients have one architecture. A turn
runs every variant once, all in one process and on one thread. What is measured lies between the
start of the second round and its last reply: broadcast, training, messages and states. A ratio is
that of the CPU seconds of the same turn.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from benchmarks import harness
from mlecs_lightning import Digits, FederatedTrainer
from mlecs_lightning.algorithms.base import Steps
from mlecs_lightning.algorithms.cdcca import CDCCA
from mlecs_lightning.algorithms.coplms import CoPLMs
from mlecs_lightning.algorithms.eclm import ECLM
from mlecs_lightning.algorithms.eclm.derivation import Budget
from mlecs_lightning.algorithms.fedavg import FedAvg
from mlecs_lightning.callbacks import FederatedCallback
from mlecs_lightning.clients.settings import ClientSettings, Federation
from mlecs_lightning.rounds import Algorithm
from mlecs_lightning.settings import ModelSettings

STEPS = Steps(warmup=0, public=5, private=5, server=0)
LOOKS = Steps(warmup=0, public=0, private=2, server=0)
METHODS: dict[str, Callable[[], Algorithm]] = {
    "FedAvg": lambda: FedAvg(steps=STEPS),
    "CoPLMs": lambda: CoPLMs(steps=STEPS),
    "CDCCA": lambda: CDCCA(steps=LOOKS),
    "CDCCA, probability": lambda: CDCCA(steps=LOOKS, measure="probability"),
    "CDCCA, features": lambda: CDCCA(steps=LOOKS, measure="features"),
    "ECLM": lambda: ECLM(steps=STEPS),
    "ECLM, half": lambda: ECLM(steps=STEPS, budget=Budget(modules=0.5)),
}
_MLPS = ["c_fc", "mlp.c_proj"]


class Ended(Exception):
    """What would follow is not measured."""


class Watch(FederatedCallback):
    """Notes the CPU seconds of the second round up to its last reply, and leaves."""

    def __init__(self) -> None:
        """Start with no figure."""
        self._began, self.spent, self._left = 0.0, 0.0, 0

    def on_round_start(self, *, round: int, participants: tuple[str, ...]) -> None:
        """See `FederatedCallback`."""
        self._began, self._left = time.process_time(), len(participants)

    def on_client_end(self, *, round: int, client: str, metrics: Mapping[str, float]) -> None:
        """See `FederatedCallback`."""
        self._left -= 1
        if round == 1 and not self._left:
            self.spent = time.process_time() - self._began
            raise Ended


def federation(method: str, clients: int) -> Federation:
    """Return the quickstart's models for a number of clients with all sensors."""
    model = {
        "lora": {"r": 8, "alpha": 16, "dropout": 0.05},
        "connector": {"width": 64, "prompt_length": 8},
        "optimizer": {"class_path": "AdamW", "init_args": {"lr": 1e-3}},
        "max_new_tokens": 12,
    }
    if method.startswith("ECLM"):
        model["lora"] = {**model["lora"], "target_modules": _MLPS}
    edge, server = (
        ModelSettings.from_dict({"backbone": {"model": name}, **model})
        for name in ("pocket/slm", "pocket/llm")
    )
    sensors = ["pixels", "profile", "fourier"]
    named = {f"c{n:02d}": ClientSettings(sensors) for n in range(clients)}
    return Federation(server=server, edge=edge, clients=named)


def measure(method: str, cohort: int | Literal["auto"], *, clients: int, batch: int) -> float:
    """Return the CPU milliseconds of a client in the second round."""
    watch = Watch()
    options: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "check_val_every_n_rounds": 0}
    with tempfile.TemporaryDirectory() as root:
        trainer = FederatedTrainer(
            max_rounds=2,
            cohort=cohort,
            gradient_clip_val=1.0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            logger=False,
            callbacks=[watch],
            default_root_dir=root,
            **options,
        )
        data = Digits(batch_size=batch, partition="dirichlet", alpha=5.0)
        with contextlib.suppress(Ended):
            trainer.fit(METHODS[method](), data, federation(method, clients))
    return 1e3 * watch.spent / clients


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| method | clients | `cohort: 1`, ms a client | `auto`, ms a client | x alone |")
    print("|---|---:|---:|---:|---:|")
    for method in args.methods:
        for clients in args.clients:
            sizes: tuple[int | Literal["auto"], ...] = (1, "auto")
            turns = [
                [measure(method, size, clients=clients, batch=args.batch) for size in sizes]
                for _ in range(args.turns)
            ]
            alone, joint = (harness.spread([t[n] for t in turns], "{:.0f}") for n in (0, 1))
            ratio = harness.spread([t[1] / t[0] for t in turns], "{:.2f}")
            print(f"| {method} | {clients} | {alone} | {joint} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
