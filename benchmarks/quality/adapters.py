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
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean

import torch
import yaml
from torch import Tensor

from mlecs_lightning import FederatedDataModule, TrainedRun, load_run
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
    counts = LabelScores(data.read_label, len(data.classes))
    with torch.no_grad():
        for batch in sequential_loader(table, 128):
            texts, _ = edge.answer(batch)
            counts.update(texts, list(batch.targets))
    return float(counts.compute()["macro_f1"])


def silent(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an adapter whose update is zero."""
    return {k: torch.zeros_like(t) if ".lora_B." in k else t for k, t in adapter.items()}


def scores(
    run: TrainedRun, score: Callable[[EdgeModule], float]
) -> dict[str, dict[str | None, float]]:
    """Return each client's score with the adapter of every client of its architecture.

    Args:
        run: The run.
        score: Scores a client's model.

    Returns:
        By client, and then by the client whose adapter it is; `None` is the adapter that changes
        nothing.
    """
    edges = {name: run.client(name).module.eval() for name in run.clients}
    adapters = {name: edge.adapter_state() for name, edge in edges.items()}
    found: dict[str, dict[str | None, float]] = {}
    for name, edge in edges.items():
        shapes = {k: t.shape for k, t in adapters[name].items()}
        found[name] = {}
        for other, adapter in ({None: silent(adapters[name])} | adapters).items():
            if {k: t.shape for k, t in adapter.items()} == shapes:
                edge.load_adapter_state(adapter)
                found[name][other] = score(edge)
    return found


def main() -> None:
    """Print a row for each client and their mean."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a run that has ended")
    folder = parser.parse_args().run
    data = data_of(folder)
    rows: list[tuple[float, float, float]] = []
    print(f"{'client':>12} {'own':>7} {'others':>7} {'none':>7}")
    for name, by in scores(load_run(folder), lambda edge: macro_f1(edge, data)).items():
        others = [score for other, score in by.items() if other not in (None, name)]
        rows.append((by[name], mean(others) if others else float("nan"), by[None]))
        print(f"{name:>12} " + " ".join(f"{score:7.3f}" for score in rows[-1]))
    print(f"{'mean':>12} " + " ".join(f"{mean(column):7.3f}" for column in zip(*rows, strict=True)))


if __name__ == "__main__":
    main()
