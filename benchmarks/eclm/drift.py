"""One method under one drift: UR Fall, three devices, four rounds."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.eclm.methods import WARMUP, FullModel, Judged, PreparedFedAvg, PreparedMLECS
from benchmarks.eclm.training import begun, rounds_of
from benchmarks.harness import REPOSITORY
from mlecs_lightning import ECLM
from mlecs_lightning.algorithms import LocalTraining, Steps
from mlecs_lightning.algorithms.eclm.derivation import Budget
from mlecs_lightning.clients import ClientSettings, Federation
from mlecs_lightning.data import Drift, Pools, Shift
from mlecs_lightning.settings import ModelSettings

CONFIG = REPOSITORY / "configs" / "urfall" / "eclm.yaml"
SEEDS = (27, 34, 46, 52, 93)
ROUNDS, PASS, BATCH = 4, 20, 16

SCENARIOS: dict[str, list[Shift]] = {
    "none": [],
    "modality": [
        Shift(1, 3, ["living_room"], lose=["rgb"]),
        Shift(1, 3, ["bedroom"], lose=["acc"]),
        Shift(1, 3, ["office"], lose=["depth"]),
    ],
    "classes": [Shift(1, class_mix=0.5)],
    "scene": [
        Shift(0, 1, ["living_room"], domains=["living_bright"]),
        Shift(1, None, ["living_room"], domains=["living_dark"]),
        Shift(0, 1, ["bedroom"], domains=["bedroom"]),
        Shift(1, None, ["bedroom"], domains=["corner_empty"]),
        Shift(0, 1, ["office"], domains=["office_B"]),
        Shift(1, None, ["office"], domains=["office_A2"]),
    ],
    "budget": [Shift(1, 3, budget=0.5)],
}


def method(name: str) -> LocalTraining:
    """Return an algorithm by its name here."""
    steps = Steps(WARMUP, 0, PASS, 0)  # devices tune on what they have themselves
    eclm: dict[str, Any] = {"modules": 8, "active": 2, "budget": Budget(modules=0.5)}
    match name:
        case "ECLM":
            return ECLM(**eclm, steps=steps)
        case "ECLM, refresh":
            return ECLM(**eclm, steps=steps, refresh=True)
        case "static":
            return ECLM(**eclm, steps=replace(steps, private=0), rederive=False)
        case "full model":
            return FullModel(steps=steps)
        case "FedAvg":
            # What its server learns never reaches the devices.
            return PreparedFedAvg(steps=replace(steps, warmup=0))
        case "ML-ECS":
            half = PASS // 2  # it needs public data too: as many steps in all
            return PreparedMLECS(
                steps=Steps(WARMUP, half, half, half), order="public_first", freeze_extractors=False
            )
    raise ValueError(name)


METHODS = ("static", "ECLM", "full model", "FedAvg", "ML-ECS")


def federation(seed: int) -> Federation:
    """Return the parties of the configuration."""
    written = yaml.safe_load(CONFIG.read_text())
    models = {
        party: ModelSettings.from_dict({"optimizer": written[party]["optimizer"], **written[party]})
        for party in ("server", "edge")
    }
    clients = {name: ClientSettings(**values) for name, values in written["clients"].items()}
    return Federation(models["server"], models["edge"], clients, seed)


def beginning(name: str, seed: int, root: Path, pools: Pools, folder: Path) -> str:
    """Train the cloud once for all drifts; return the state in which they begin."""
    family = {"static": "ECLM", "ECLM, refresh": "ECLM"}.get(name, name)
    data = Judged(root, batch_size=BATCH)
    data._pools = pools
    return begun(method(family), data, federation(seed), folder / f"{family}-{seed}.ckpt")


def drift(
    scenario: str, name: str, seed: int, root: Path, pools: Pools, *, start: str
) -> dict[str, Any]:
    """Run one method under one drift."""
    data = Judged(root, batch_size=BATCH, schedule=Drift(SCENARIOS[scenario]))
    data._pools = pools
    began = time.perf_counter()
    history, summary = rounds_of(
        method(name), data, federation(seed), start=start, max_rounds=ROUNDS
    )
    scores = {
        client: [row.get(f"clients/{client}/val/macro_f1") for row in history]
        for client in ("living_room", "bedroom", "office")
    }
    late = [s for each in scores.values() for s in each[1:] if s is not None]
    sizes = [
        [row.get(f"clients/{client}/submodel/modules") for row in history] for client in scores
    ]
    return {
        **{"kind": "drift", "scenario": scenario, "method": name, "seed": seed},
        "macro_f1": statistics.fmean(late),
        "by_round": scores,
        "modules": sizes,
        "derived": [row.get("server/modules/derived") for row in history],
        "drifted": {c: [r.get(f"clients/{c}/drifted") for r in history] for c in scores},
        "uplink_bytes": summary["communication"]["uplink_bytes"],
        "downlink_bytes": summary["communication"]["downlink_bytes"],
        "by_component": summary["communication"]["by_component"],
        "faults": summary["faults"]["events"],
        "seconds": round(time.perf_counter() - began, 1),
    }
