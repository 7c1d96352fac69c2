"""ECLM and its rivals on many devices, and the quality of its sub-models by size.

Settings, fixed before the runs: Digits, ``pocket/slm`` of 8 modules a layer, rank 8; AdamW at 1e-3;
batches of 16 (Nebula's rate and batch); 300 steps of the cloud on public data for every method,
of which ability training takes the last 100; 20 steps of a device on its own data in each round in
which it takes part (about Nebula's three epochs).

The weight of ability training was chosen among those of `TRIED`, by the mean accuracy of sub-models
of a quarter of the modules on the held-out part of the private pool (``judged_on: val``) with seed
0, which no table has. Its other settings are the defaults.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.eclm.devices import ManyDevices, budget_of, named
from benchmarks.eclm.methods import FullModel, HeteroFL, LocalAdaptation
from benchmarks.eclm.training import rounds_of, warmed
from benchmarks.harness import commit, hardware
from mlecs_lightning import ECLM
from mlecs_lightning.algorithms import LocalTraining, Steps
from mlecs_lightning.algorithms.eclm.ability import AbilityTraining
from mlecs_lightning.algorithms.eclm.derivation import Budget
from mlecs_lightning.clients import Federation
from mlecs_lightning.data.base import Split
from mlecs_lightning.rounds import Participation
from mlecs_lightning.settings import ModelSettings

MODULES, WARMUP, ABILITY, PASS, BATCH = 8, 300, 100, 20, 16
SEEDS = (27, 34, 46, 52, 93)
SHARES = (0.125, 0.25, 0.5, 1.0)

METHODS = (
    *("no adaptation", "local adaptation", "HeteroFL"),
    *("FedAvg of adapters", "FedAvg of full weights", "ECLM", "ECLM, stage 2"),
)
TRIED = {
    f"weight {weight:g}": AbilityTraining(steps=ABILITY, weight=weight)
    for weight in (0.1, 0.3, 1.0, 3.0)
}
CHOSEN = "weight 0.3"
ADAPTED = TRIED[CHOSEN]
"""Of the tables."""


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        devices: Number of devices.
        fraction: Fraction of them in a round.
        rounds: Number of rounds.
        rounds_per_step: Rounds after which half of a device's data is replaced.
    """

    devices: int
    fraction: float
    rounds: int
    rounds_per_step: int


WHOLE = Size(devices=100, fraction=0.1, rounds=40, rounds_per_step=20)
QUICK = Size(devices=20, fraction=0.5, rounds=4, rounds_per_step=2)
OF_SIZES = Size(devices=20, fraction=1.0, rounds=2, rounds_per_step=2)


def federation(seed: int, size: Size) -> Federation:
    """Return the parties: a cloud, and devices that have parts of its model."""
    model = ModelSettings.from_dict(
        {
            "backbone": {"model": "pocket/slm"},
            "lora": {
                "r": 8,
                "alpha": 16,
                "dropout": 0.05,
                "target_modules": ["c_fc", "mlp.c_proj"],
            },
            "connector": {"width": 64, "prompt_length": 8},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
            "max_new_tokens": 12,
        }
    )
    return Federation(model, model, named(size.devices), seed)


def data_of(seed: int, size: Size, judged_on: Split = "test") -> ManyDevices:
    """Return the data: those of the devices are equal under all seeds, who takes part is not."""
    return ManyDevices(
        batch_size=BATCH,
        rounds_per_step=size.rounds_per_step,
        fraction=size.fraction,
        run_seed=seed,
        judged_on=judged_on,
    )


def method(name: str, size: Size) -> LocalTraining:
    """Return an algorithm by its name here."""
    budgets = {client: budget_of(client, modules=MODULES) for client in named(size.devices)}
    plain = Steps(WARMUP, 0, PASS, 0)
    parts: dict[str, Any] = {"modules": MODULES, "active": 1, "budgets": budgets, "steps": plain}
    match name:
        case "no adaptation":
            return ECLM(**{**parts, "steps": replace(plain, private=0), "rederive": False})
        case "local adaptation":
            return LocalAdaptation(**parts)
        case "HeteroFL":
            return HeteroFL(**parts, refresh=True)
        case "FedAvg of adapters":
            return ECLM(**{**parts, "budgets": None}, refresh=True, merge_weights="samples")
        case "FedAvg of full weights":
            return FullModel(steps=plain)
        case "ECLM":
            return ECLM(**parts, refresh=True)
        case "ECLM, stage 2":
            fewer = replace(plain, warmup=WARMUP - ABILITY)
            return ECLM(**{**parts, "steps": fewer}, refresh=True, ability=ADAPTED)
    raise ValueError(name)


def cloud(algorithm: LocalTraining, seed: int, size: Size, folder: Path) -> str | None:
    """Return the warm-up of an algorithm, one for all that train the cloud alike."""
    kind = type(algorithm) if isinstance(algorithm, FullModel | HeteroFL) else ECLM
    # The cloud knows nothing of the devices yet, but has a record for each.
    target = folder / f"{kind.__name__}-{size.devices}-{algorithm.steps.warmup}-{seed}.ckpt"
    return warmed(algorithm, data_of(seed, size), federation(seed, size), target)


def judge(
    algorithm: LocalTraining,
    seed: int,
    size: Size,
    folder: Path,
    *,
    judged_on: Split = "test",
    since: int,
) -> dict[str, Any]:
    """Run a method; its score is the mean accuracy over the devices of each round from one on.

    A device is judged after the rounds in which it takes part, by the model that it then has.
    """
    began = time.perf_counter()
    history, summary = rounds_of(
        algorithm,
        data_of(seed, size, judged_on),
        federation(seed, size),
        warm=cloud(algorithm, seed, size, folder),
        max_rounds=size.rounds,
        # None before that round, where it is the last.
        check_val_every_n_rounds=since + 1 if since + 1 == size.rounds else 1,
        participation=Participation(fraction=size.fraction),
        store="disk",
    )
    scores = [row["clients/val/accuracy"] for row in history[since:]]
    sizes = [v for row in history for k, v in row.items() if k.endswith("submodel/modules")]
    sent = summary["communication"]
    return {
        "accuracy": statistics.fmean(scores),
        "by_round": scores,
        "modules": statistics.fmean(sizes) if sizes else None,
        "server": history[-1]["server/val/accuracy"],
        "uplink_bytes": sent["uplink_bytes"],
        "downlink_bytes": sent["downlink_bytes"],
        "by_component": sent["by_component"],
        "faults": len(summary["faults"]["events"]),
        "rounds": size.rounds,
        "devices": size.devices,
        "seconds": round(time.perf_counter() - began, 1),
        "commit": commit(),
        "hardware": hardware(),
    }


def many(name: str, seed: int, size: Size, folder: Path) -> dict[str, Any]:
    """Run a method on many devices; judged after the first half of their data is replaced."""
    about = {"kind": "many", "method": name, "seed": seed}
    since = size.rounds_per_step
    return about | judge(method(name, size), seed, size, folder, since=since)


def of_size(
    arm: str, share: float, seed: int, folder: Path, *, tuned: bool, judged_on: Split = "test"
) -> dict[str, Any]:
    """Judge sub-models of one size, chosen by the devices' own gates.

    Args:
        arm: ``stage 1``, or the name of a stage 2 in `TRIED`, with as many steps in all.
        share: Share of the modules.
        seed: Base seed.
        folder: Of the warm-ups.
        tuned: Whether the devices tune them on their own data, for themselves.
        judged_on: See `ManyDevices`.
    """
    ability = None if arm == "stage 1" else TRIED[arm]
    algorithm = LocalAdaptation(
        modules=MODULES,
        active=1,
        budget=Budget(modules=share),
        steps=Steps(WARMUP - (ABILITY if ability else 0), 0, PASS if tuned else 0, 0),
        ability=ability,
    )
    about = {"kind": "size", "arm": arm, "share": share, "tuned": tuned, "seed": seed}
    about["judged_on"] = judged_on
    return about | judge(algorithm, seed, OF_SIZES, folder, judged_on=judged_on, since=1)
