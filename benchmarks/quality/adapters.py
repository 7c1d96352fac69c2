"""What the adapters of a trained run carry: scores with other adapters in their place.

    python -m benchmarks.quality.adapters RUN_FOLDER

Each client of the run answers all test samples with its own adapter, with that of every other
client of its architecture, and with an adapter that changes nothing (B = 0). Encoders and connector
stay its own. If nothing is lost, the adapters carry nothing that differs between clients, or
nothing at all.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import torch
import yaml
from torch import Tensor

from mlecs_lightning import FederatedDataModule, load_run
from mlecs_lightning.data.sampling import sequential_loader
from mlecs_lightning.metrics import LabelScores
from mlecs_lightning.modules import EdgeModule


def data_of(folder: Path) -> FederatedDataModule:
    """Return the data module of a run, built anew from its configuration."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["data"]
    module, _, name = config["class_path"].rpartition(".")
    data = getattr(importlib.import_module(module), name)(**config["init_args"])
    assert isinstance(data, FederatedDataModule)
    return data


def macro_f1(edge: EdgeModule, data: FederatedDataModule) -> float:
    """Return a client's score on all test samples, in its own modalities."""
    table = data.pools.test.restrict(edge.modalities)
    scores = LabelScores(data.read_label, len(data.classes))
    edge.eval()
    with torch.no_grad():
        for batch in sequential_loader(table, 128):
            texts, _ = edge.answer(batch)
            scores.update(texts, list(batch.targets))
    return float(scores.compute()["macro_f1"])


def silent(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an adapter whose update is zero."""
    return {k: torch.zeros_like(t) if ".lora_B." in k else t for k, t in adapter.items()}


def main() -> None:
    """Print a row for each client and their mean."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a run that has ended")
    folder = parser.parse_args().run
    run, data = load_run(folder), data_of(folder)
    edges = {name: run.client(name).module for name in run.clients}
    adapters = {name: edge.adapter_state() for name, edge in edges.items()}
    rows: list[tuple[float, float, float]] = []
    print(f"{'client':>12} {'own':>7} {'others':>7} {'none':>7}")
    for name, edge in edges.items():
        shapes = {k: t.shape for k, t in adapters[name].items()}
        own, others = macro_f1(edge, data), []
        for other, adapter in adapters.items():
            if other != name and {k: t.shape for k, t in adapter.items()} == shapes:
                edge.load_adapter_state(adapter)
                others.append(macro_f1(edge, data))
        edge.load_adapter_state(silent(adapters[name]))
        rows.append((own, mean(others) if others else float("nan"), macro_f1(edge, data)))
        print(f"{name:>12} " + " ".join(f"{score:7.3f}" for score in rows[-1]), flush=True)
    print(f"{'mean':>12} " + " ".join(f"{mean(column):7.3f}" for column in zip(*rows, strict=True)))


if __name__ == "__main__":
    main()
