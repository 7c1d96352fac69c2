"""Run folders as a run leaves them, with figures that can be followed by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import yaml

CLIENTS = {"kitchen": ["acc", "depth"], "hall": ["rgb"]}


def a_config(algorithm: str = "MLECS", seed: int = 1, **trainer: Any) -> dict[str, Any]:
    return {
        "seed_everything": seed,
        "trainer": {"max_rounds": 2, "name": f"{algorithm}-{seed}", "faults": None, **trainer},
        "data": {"class_path": "mlecs_lightning.URFall", "init_args": {"root": "data"}},
        "algorithm": {"class_path": f"mlecs_lightning.{algorithm}", "init_args": {}},
        "clients": {name: {"modalities": has} for name, has in CLIENTS.items()},
    }


def a_summary(
    algorithm: str = "MLECS", seed: int = 1, score: float = 0.5, **more: Any
) -> dict[str, Any]:
    def scores(value: float) -> dict[str, float]:
        return {"macro_f1": value, "rouge_lsum": value + 0.1}

    return {
        "algorithm": algorithm,
        "seed": seed,
        "rounds": 2,
        "clients": {
            name: {"modalities": has, "own": scores(score + 0.1), "all": scores(score)}
            for name, has in CLIENTS.items()
        },
        "mean": {"own": scores(score + 0.1), "all": scores(score)},
        "server": scores(score + 0.2),
        "constant": {"own": scores(0.2), "all": scores(0.1), "server": scores(0.3)},
        "aggregation_error": [0.02, 0.01],
        "faults": {"dropout": 0, "crash": 0, "events": []},
        "communication": {
            "uplink_bytes": 1000,
            "downlink_bytes": 3000,
            "ratio_of_edge_parameters": {"uplink": 0.01, "downlink": 0.03},
            "ratio_of_server_parameters": {"uplink": 0.001, "downlink": 0.003},
            "by_component": {"uplink": {"adapter": 1000}, "downlink": {"fused": 3000}},
        },
        "seconds": 12.0,
        **more,
    }


def a_history(rounds: int = 2, score: float = 0.5) -> list[dict[str, float]]:
    """Return what CSVLogger writes: the warm-up, then the rounds."""
    rows: list[dict[str, float]] = [{"step": 0, "server/warmup/loss": 2.0}]
    for n in range(1, rounds + 1):
        row = {"step": n, "round": n - 1, "aggregate/error": 0.02 / n}
        for n_client, client in enumerate(CLIENTS):
            row[f"clients/{client}/val/macro_f1"] = score + 0.1 * n_client
            row[f"clients/{client}/val/loss"] = 1 / n
            row[f"clients/{client}/ccl/volume_diagonal"] = 0.4 + 0.2 * n_client
            row[f"clients/{client}/ccl/volume_off_diagonal"] = 0.9
            row[f"clients/{client}/ccl/gram_det"] = 0.8
            row[f"clients/{client}/ccl/cosine"] = 0.5 - 0.7 * n_client
        row |= {"clients/val/macro_f1": score, "clients/val/loss": 1 / n}
        row |= {"server/val/macro_f1": 0.8, "server/public/volume_diagonal": 0.3}
        row |= {"communication/uplink_bytes": 500 * n, "communication/downlink_bytes": 1500 * n}
        row["seconds"] = 5.0 * n
        rows.append(row)
    return rows


def write_run(
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    summary: dict[str, Any] | None = None,
    history: list[dict[str, float]] | None = None,
) -> Path:
    """Write the files that are given."""
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    if history is not None:
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, sorted({key for row in history for key in row}))
            writer.writeheader()
            writer.writerows(history)
    return folder


def whole(
    folder: Path, algorithm: str = "MLECS", seed: int = 1, score: float = 0.5, **trainer: Any
) -> Path:
    """Write a run that has ended."""
    return write_run(
        folder,
        config=a_config(algorithm, seed, **trainer),
        summary=a_summary(algorithm, seed, score),
        history=a_history(score=score),
    )
