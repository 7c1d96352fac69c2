"""ECLM under drift on UR Fall, and what a sub-model costs, as JSON lines; a rerun goes on.

    python benchmarks/eclm.py drift --root PATH/TO/urfd --out FILE [--seeds 27 34] [--methods ...]
    python benchmarks/eclm.py cost --out FILE
    python benchmarks/eclm.py table --out FILE

Three devices (configs/urfall/eclm.yaml), four rounds, one drift at a time, from round 1 on. Each
device is judged after every round on the held-out samples of its own scenes as it sees them then;
the score of a run is the mean macro-F1 of devices and rounds from round 1 on.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from eclm_methods import WARMUP, FullModel, Judged, PreparedFedAvg, PreparedMLECS
from lightning.fabric.loggers import Logger

from mlecs_lightning import ECLM, FederatedTrainer, URFall
from mlecs_lightning.algorithms import LocalTraining, Steps
from mlecs_lightning.algorithms.eclm.derivation import Budget
from mlecs_lightning.clients import ClientSettings, FederationSettings
from mlecs_lightning.data import Drift, Pools, Shift
from mlecs_lightning.federated.warmup import ServerWarmup
from mlecs_lightning.settings import ModelSettings

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "urfall" / "eclm.yaml"
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


def federation(seed: int) -> FederationSettings:
    """Return the parties of the configuration."""
    written = yaml.safe_load(CONFIG.read_text())
    models = {
        party: ModelSettings.from_dict({"optimizer": written[party]["optimizer"], **written[party]})
        for party in ("server", "edge")
    }
    clients = {name: ClientSettings(**values) for name, values in written["clients"].items()}
    return FederationSettings(models["server"], models["edge"], clients, seed)


def warm_up(name: str, seed: int, root: Path, pools: Pools, folder: Path) -> str | None:
    """Train the cloud once for all drifts, with the result of a warm-up inside `fit`."""
    family = {"static": "ECLM", "ECLM, refresh": "ECLM"}.get(name, name)
    algorithm = method(family)
    if algorithm.steps.warmup == 0:
        return None
    target = folder / f"{family}-{seed}.ckpt"
    if not target.exists():
        data = Judged(root, batch_size=BATCH)
        data._pools = pools
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        place = {"default_root_dir": str(folder / f"{family}-{seed}"), "accelerator": "cpu"}
        written = ServerWarmup({**quiet, **place, "devices": 1}).warmup(
            algorithm, data, federation(seed)
        )
        assert written is not None
        written.rename(target)
    return str(target)


def drift(
    scenario: str, name: str, seed: int, root: Path, pools: Pools, *, warm: str | None
) -> dict[str, Any]:
    """Run one method under one drift."""
    data = Judged(root, batch_size=BATCH, schedule=Drift(SCENARIOS[scenario]))
    data._pools = pools
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = FederatedTrainer(
            max_rounds=ROUNDS,
            accelerator="cpu",
            devices=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            limit_test_batches=0,
            warmup_ckpt_path=warm,
            logger=[Keeper()],
            default_root_dir=folder,
        )
        summary = trainer.fit(method(name), data, federation(seed))
    history = Keeper.rows
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


class Keeper(Logger):
    """A logger that keeps the metrics of the rounds of the last run."""

    name, version = "keeper", 0
    rows: list[dict[str, float]] = []  # noqa: RUF012

    def __init__(self) -> None:
        """Forget the last run."""
        super().__init__()
        Keeper.rows = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep a round; what comes before the first is the warm-up."""
        if "round" in metrics:
            Keeper.rows.append(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the script has them."""


def cost(share: float, repeats: int = 5) -> dict[str, Any]:
    """Measure the MLPs of a GPT-2 of 124 M parameters, cut to a share of its modules.

    Random weights: size and time do not depend on them. The whole weights are gone before memory is
    read. Resident memory of the MLPs is what the process gives back when they are dropped; time is
    that of the processor for one pass of 512 tokens through all of them, one thread.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    from mlecs_lightning.algorithms.eclm.modular import ModularMLPs

    torch.manual_seed(0)
    lm = GPT2LMHeadModel(GPT2Config()).requires_grad_(False)
    lora = LoraConfig(r=8, target_modules=["c_fc", "mlp.c_proj"], fan_in_fan_out=True)
    lm = get_peft_model(lm, lora)
    mlps = [block.mlp for block in lm.base_model.model.transformer.h]
    modular = ModularMLPs(lm, 8)
    mask = torch.zeros(modular.shape, dtype=torch.bool)
    mask[:, : round(share * 8)] = True
    modular.select(mask)
    for block in modular._blocks:
        for layer in block:
            layer.weight, layer.bias = layer.base.weight, layer.base.bias
    x, seconds = torch.randn(8, 64, 768), []
    with torch.inference_mode():
        for _ in range(repeats + 2):
            began = time.process_time()
            for mlp in mlps:
                mlp(x)
            seconds.append(time.process_time() - began)
    parameters = sum(p.numel() for mlp in mlps for p in mlp.parameters())
    size = sum(p.numel() * p.element_size() for mlp in mlps for p in mlp.parameters())
    trim()
    before = rss()
    for block in modular._blocks:
        for layer in block:
            layer.weight, layer.bias = layer.base.weight, layer.base.bias = None, None
    trim()
    return {
        **{"kind": "cost", "share": share, "mlp_parameters": parameters},
        "mlp_mib": round(size / 2**20, 1),
        "mlp_resident_mib": round(before - rss(), 1),
        "mlp_ms": round(1e3 * statistics.median(seconds[2:]), 1),
    }


def rss() -> float:
    """Return the resident set of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 2**20


def trim() -> None:
    """Hand freed memory back to the system, where the C library can."""
    import ctypes
    import gc

    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)


def table(rows: list[dict[str, Any]]) -> None:
    """Print means and standard deviations over the seeds."""
    for scenario in SCENARIOS:
        for name in (*METHODS, "ECLM, refresh"):
            mine = [
                r
                for r in rows
                if r["kind"] == "drift" and (r["scenario"], r["method"]) == (scenario, name)
            ]
            if not mine:
                continue
            scores = [r["macro_f1"] for r in mine]
            spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
            up, down = (
                statistics.fmean(r[f"{way}link_bytes"] for r in mine) / 1e6
                for way in ("up", "down")
            )
            print(
                f"| {scenario} | {name} | {statistics.fmean(scores):.3f} ± {spread:.3f} "
                f"| {up:.2f} MB | {down:.2f} MB | {len(mine)} |"
            )
    for row in rows:
        if row["kind"] == "cost":
            print(row)


def main() -> None:
    """Run what is not in the file yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["drift", "cost", "table"])
    parser.add_argument("--root", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--scenarios", nargs="+", default=[s for s in SCENARIOS if s != "none"])
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.5, 0.25])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child:
        print(json.dumps(cost(args.shares[0])))
        return
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    rows = [json.loads(line) for line in lines]
    if args.what == "table":
        table(rows)
        return
    if args.what == "cost":
        for share in args.shares:
            command = [sys.executable, __file__, "cost", "--child", "--out", str(args.out)]
            ran = subprocess.run(
                [*command, "--shares", str(share)], capture_output=True, text=True, check=True
            )
            keep(args.out, json.loads(ran.stdout.splitlines()[-1]))
        return
    done = {(r["scenario"], r["method"], r["seed"]) for r in rows if r["kind"] == "drift"}
    pools, folder = URFall(args.root).load_pools(), args.out.with_suffix(".warmups")
    folder.mkdir(exist_ok=True)
    for seed in args.seeds:
        for scenario in args.scenarios:
            for name in args.methods:
                if (scenario, name, seed) in done:
                    continue
                warm = warm_up(name, seed, args.root, pools, folder)
                keep(args.out, drift(scenario, name, seed, args.root, pools, warm=warm))


def keep(out: Path, row: dict[str, Any]) -> None:
    """Append a row."""
    print(json.dumps({k: v for k, v in row.items() if not isinstance(v, dict | list)}), flush=True)
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
