"""ECLM and its rivals on many devices, and the quality of its sub-models by size.

Registered before the first run of the present quick form:

Setting. Digits, ``pocket/slm`` of 8 modules a layer, rank 8; AdamW at 1e-3; batches of 16 (Nebula's
rate and batch); 300 steps of the cloud on public data for every method, of which ability training
takes the last 100; 20 steps of a device on its own data in each round in which it takes part (about
Nebula's three epochs). All runs of a seed that need the same cloud start from one.

Arms. Of the curve against size: stage 1 alone; with stage 2 (``weight 0.3``); and with a stage 2
of as many steps and lambda 0 (``weight 0``), which is fine-tuning without gate labels and without
the load balance. The methods are those of `METHODS`.

Seeds. 27, 34, 46, 52, 93 for the curve, the first three for the methods. The quick form has 1, 2
and 3, which nobody had looked at, 10 devices, 4 rounds, and fewer methods and sizes.

Time. The quick form takes 5 minutes of the processor. A device's pass takes 0.3 to 0.5 s, so the
full form takes about 100 minutes: an hour on two cores.

Rule. What stage 2 gains over lambda 0 is the effect of the gate labels; what it gains over stage 1
is that of the stage. `ability` becomes a default if at a quarter of the modules the first is
above zero with its interval (Student's, 95 %, by seed) in the full form. The quick form changes no
default.

The weight of ability training was chosen among those of `TRIED` above 0, by the mean accuracy of
sub-models of a quarter of the modules on the held-out part of the private pool (``judged_on: val``)
with seed 0, which no table has. Its other settings are the defaults.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.eclm.devices import ManyDevices, budget_of, named
from benchmarks.eclm.methods import FullModel, HeteroFL, LocalAdaptation
from benchmarks.eclm.training import begun, rounds_of
from benchmarks.harness import Clock
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
    for weight in (0.0, 0.1, 0.3, 1.0, 3.0)
}
PLAIN, CHOSEN = "weight 0", "weight 0.3"
STAGES = ("stage 1", PLAIN, CHOSEN)
"""The clouds of the curve against size."""


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
SHORT = Size(devices=10, fraction=0.6, rounds=4, rounds_per_step=2)


@dataclass(frozen=True)
class Form:
    """What is run.

    Attributes:
        size: Of the comparison of methods.
        methods: The methods.
        devices: Number of devices of the curve against size.
        seeds: Base seeds of the curve against size.
        repeated: Number of these, from the first on, of the comparison of methods.
        shares: Shares of the modules.
        tuned: Whether devices tune their sub-models, as in `of_size`.
    """

    size: Size
    methods: tuple[str, ...]
    devices: int
    seeds: tuple[int, ...]
    repeated: int
    shares: tuple[float, ...]
    tuned: tuple[bool, ...]


FULL = Form(WHOLE, METHODS, 20, SEEDS, 3, SHARES, (False, True))
QUICK = Form(
    SHORT,
    methods=tuple(m for m in METHODS if m not in ("HeteroFL", "FedAvg of full weights")),
    devices=SHORT.devices,
    seeds=(1, 2, 3),
    repeated=3,
    shares=(0.25, 1.0),
    tuned=(False,),
)


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
            return ECLM(**{**parts, **stage(CHOSEN, PASS)}, refresh=True)
    raise ValueError(name)


def stage(arm: str, steps: int = 0) -> dict[str, Any]:
    """Return the arguments of a cloud of `STAGES` or `TRIED`, and of the devices' steps."""
    first = WARMUP - (ABILITY if arm in TRIED else 0)
    return {"ability": TRIED.get(arm), "steps": Steps(first, 0, steps, 0)}


def cloud_of(name: str) -> str:
    """Return the cloud that a method starts from: its own, or one of `STAGES`."""
    own = {"HeteroFL": name, "FedAvg of full weights": name, "ECLM, stage 2": CHOSEN}
    return own.get(name, STAGES[0])


def clouds(form: Form, seed: int) -> set[tuple[str, int]]:
    """Return the clouds of a seed, each with the number of devices that it has a record for."""
    of_methods = form.methods if seed in form.seeds[: form.repeated] else ()
    found = {(cloud_of(name), form.size.devices) for name in of_methods}
    return found | {(arm, form.devices) for arm in STAGES}


def start_of(name: str, devices: int, seed: int, folder: Path) -> Path:
    """Return where the state is kept in which all runs of a cloud begin."""
    return folder / f"{name.replace(' ', '-')}-{devices}-{seed}.ckpt"


def cloud(name: str, devices: int, seed: int, folder: Path) -> dict[str, Any]:
    """Train a cloud of `cloud_of`; return its line, empty if it has been trained."""
    target, size = start_of(name, devices, seed, folder), replace(SHORT, devices=devices)
    if target.exists():
        return {}
    began = Clock()
    of_stage = name == STAGES[0] or name in TRIED
    algorithm = ECLM(modules=MODULES, active=1, **stage(name)) if of_stage else method(name, size)
    begun(algorithm, data_of(seed, size), federation(seed, size), target)
    return {"kind": "cloud", "method": name, "devices": devices, "seed": seed} | began.told()


def judge(
    algorithm: LocalTraining,
    start: Path,
    seed: int,
    size: Size,
    *,
    judged_on: Split = "test",
    since: int,
) -> dict[str, Any]:
    """Run a method; its score is the mean accuracy over the devices of each round from one on.

    A device is judged after the rounds in which it takes part, by the model that it then has.
    """
    began = Clock()
    history, summary = rounds_of(
        algorithm,
        data_of(seed, size, judged_on),
        federation(seed, size),
        start=str(start),
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
        **began.told(),
    }


def many(name: str, seed: int, size: Size, folder: Path) -> dict[str, Any]:
    """Run a method on many devices; judged after the first half of their data is replaced."""
    about = {"kind": "many", "method": name, "seed": seed}
    since = size.rounds_per_step
    start = start_of(cloud_of(name), size.devices, seed, folder)
    return about | judge(method(name, size), start, seed, size, since=since)


def of_size(
    arm: str,
    share: float,
    devices: int,
    seed: int,
    folder: Path,
    *,
    tuned: bool,
    judged_on: Split = "test",
) -> dict[str, Any]:
    """Judge sub-models of one size, chosen by the devices' own gates.

    Args:
        arm: ``stage 1``, or the name of a stage 2 in `TRIED`, with as many steps in all.
        share: Share of the modules.
        devices: Number of devices.
        seed: Base seed.
        folder: Of the clouds.
        tuned: Whether the devices tune them on their own data, for themselves.
        judged_on: See `ManyDevices`.
    """
    budget, steps = Budget(modules=share), PASS if tuned else 0
    algorithm = LocalAdaptation(modules=MODULES, active=1, budget=budget, **stage(arm, steps))
    about = {"kind": "size", "arm": arm, "share": share, "tuned": tuned, "seed": seed}
    about["judged_on"] = judged_on
    start, size = start_of(arm, devices, seed, folder), Size(devices, 1.0, 2, 2)
    return about | judge(algorithm, start, seed, size, judged_on=judged_on, since=1)
