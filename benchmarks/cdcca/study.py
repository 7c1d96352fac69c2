"""The runs of the benchmark of CD-CCA, and what a choice of tokens costs a device."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.cdcca.arms import ARMS, STREAMS
from benchmarks.harness import Clock, append_line, read_lines

__all__ = ["complete", "cost", "run"]


def prepared(stream: str, arm: str, seed: int, *, root: str | None, folder: str) -> Any:  # noqa: ANN401
    """Return the command line of a run, with all objects built and nothing run."""
    from mlecs_lightning.cli import FederatedCLI

    class Prepared(FederatedCLI):
        def _run_subcommand(self, subcommand: str) -> None:
            return

    options = {
        **{"seed_everything": seed, "trainer.default_root_dir": folder},
        **{"trainer.enable_progress_bar": False, "trainer.logger": False},
        **{"trainer.allow_other_config": True, "trainer.save_top_k": 0},
        **{"trainer.accelerator": "cpu", "trainer.check_val_every_n_rounds": 0},
        **({"data.init_args.root": root} if stream.startswith("urfall") else {}),
        **STREAMS[stream].options,
        **ARMS[arm].options,
    }
    # The class of a method first: what follows are its arguments.
    order = sorted(options, key=lambda key: key != "algorithm")
    values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in options.items()}
    args = [f"--{k}={values[k]}" for k in order]
    return Prepared(["fit", "--config", STREAMS[stream].config, *args])


def run(stream: str, arm: str, seed: int, *, root: str | None, warm: Path) -> dict[str, Any]:
    """Train one arm with one seed, from the warm-up of that seed; return what came of it."""
    from mlecs_lightning.callbacks import FederatedCallback

    class Keep(FederatedCallback):
        """Copies the state in which round 0 begins: the cloud warm, the device handed over."""

        def on_fit_start(self, *, max_rounds: int, clients: tuple[str, ...], folder: str) -> None:
            self.folder = Path(folder)

        def on_round_start(self, *, round: int, participants: tuple[str, ...]) -> None:
            file = self.folder / "checkpoints" / "round=0000-partial.ckpt"
            if round == 0 and file.exists() and not warm.exists():
                shutil.copy(file, warm)

    began = Clock()
    with tempfile.TemporaryDirectory() as folder:
        cli = prepared(stream, arm, seed, root=root, folder=folder)
        cli.trainer._callbacks.append(Keep())
        state = str(warm) if warm.exists() else None
        summary = cli.trainer.fit(cli.algorithm, cli.datamodule, cli.federation, state)
    wire, scores = summary["communication"], summary["stream"]["clients"][STREAMS[stream].device]
    return {
        **{"stream": stream, "arm": arm, "seed": seed, **scores["macro_f1"]},
        **{"whole": summary["mean"]["own"]["macro_f1"], "teacher": summary["server"]["macro_f1"]},
        **{"uplink": wire["uplink_bytes"], "downlink": wire["downlink_bytes"]},
        "error": wire.get("reconstruction_error", {}).get("downlink", []),
        **began.told(),
    }


def complete(
    seed: int, streams: list[str], arms: list[str], *, root: str | None, out: Path
) -> None:
    """Run what the file lacks of one seed, and add a line for each run."""
    done = {(row["stream"], row["arm"], row["seed"]) for row in read_lines(out)}
    with tempfile.TemporaryDirectory() as states:
        for stream in streams:
            for arm in (a for a in arms if (stream, a, seed) not in done):
                warm = Path(states) / f"{stream}-{ARMS[arm].parts}.ckpt"
                row = run(stream, arm, seed, root=root, warm=warm)
                print(row, flush=True)
                append_line(out, row)


def cost(stream: str, *, seed: int, root: str | None) -> list[dict[str, Any]]:
    """Measure what a choice of tokens costs a device, for each measure, on one batch.

    Operations are those of matrix products and convolutions, by `FlopCounterMode`; seconds are the
    best of three.
    """
    import torch
    from lightning.fabric import Fabric
    from torch.utils.flop_counter import FlopCounterMode

    from mlecs_lightning.algorithms.cdcca.sampling import UTS
    from mlecs_lightning.clients import FederationModels
    from mlecs_lightning.clients.parties import Parties

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cli = prepared(stream, "source only", seed, root=root, folder=folder)
        parties = Parties.resolve(cli.federation, cli.algorithm, cli.datamodule)
        models = FederationModels(
            parties,
            cli.datamodule,
            fabric=Fabric(accelerator="cpu", devices=1),
            gradient_clip_val=None,
            algorithm=cli.algorithm,
        )
        models.prepare(cli.algorithm, coded=False)
        edge = models.edge(STREAMS[stream].device).module
        (batch,) = cli.datamodule.loader(cli.datamodule.public()).take(1, seed=0)
        for measure, threshold in (
            *(("answers", None), ("probability", None), ("features", None), ("features", 0.5)),
            ("random", None),
        ):
            uts = UTS(0.25, measure, "uncertain", threshold, 2, 1.0, 0.2)
            looked = uts.look(edge, batch)
            with FlopCounterMode(display=False) as counter:
                uts.look(edge, batch)
            times = []
            for _ in range(3):
                began = time.perf_counter()
                uts.look(edge, batch)
                times.append(time.perf_counter() - began)
            samples = looked.tokens.samples
            rows.append(
                {
                    **{"stream": stream, "measure": measure, "threshold": threshold},
                    **uts.passes_per_sample(looked.tokens.present.shape[1]),
                    "operations": counter.get_total_flops() / samples,
                    "milliseconds": 1e3 * min(times) / samples,
                    "threads": torch.get_num_threads(),
                }
            )
    return rows
