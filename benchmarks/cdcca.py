"""CD-CCA on the stream of UR Fall's scenes: quality against bytes.

    python -m benchmarks.cdcca --root PATH/TO/urfd --out cdcca.jsonl [--arms ...] [--seeds ...]
    python -m benchmarks.cdcca --out cdcca.jsonl --table

One device is carried through the seven scenes of configs/urfall/cdcca.yaml. All arms of a seed go
on from one warm-up. One JSON line a run, in one process; runs that the file holds are left out, so
that a study that was stopped can be gone on with.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.harness import REPOSITORY, append_line, read_lines

CONFIG = REPOSITORY / "configs" / "urfall" / "cdcca.yaml"
SEEDS = (27, 34, 46, 52, 93)
_ARGS, _DWC = "algorithm.init_args", "trainer.codec.init_args"
_PLAIN = {f"{_ARGS}.token_fraction": 1.0, "trainer.codec": None}


def _dwc(fraction: float, bits: int) -> dict[str, Any]:
    return {
        f"{_ARGS}.token_fraction": 1.0,
        f"{_DWC}.fraction": fraction,
        f"{_DWC}.bits": bits,
        f"{_DWC}.feature_bits": 32,
    }


ARMS: dict[str, dict[str, Any]] = {
    # The device alone; the second has the labels of its samples, the others have not.
    "no adaptation": {**_PLAIN, f"{_ARGS}.distillation": "none"},
    "fine-tuning on the device": {
        **_PLAIN,
        f"{_ARGS}.distillation": "none",
        f"{_ARGS}.train_device": True,
        f"{_ARGS}.steps.private": 10,
    },
    "all tokens, full precision": _PLAIN,
    "plain distillation": {**_PLAIN, f"{_ARGS}.distillation": "answers"},
    "CD-CCA": {},
    **{f"rho {r}": {**_PLAIN, f"{_ARGS}.token_fraction": r} for r in (0.5, 0.25, 0.1)},
    **{f"q {q}": _dwc(q, 32) for q in (0.25, 0.1, 0.02)},
    **{f"b {b}": _dwc(1.0, b) for b in (8, 4, 2)},
    "CD-CCA, int8 device": {"edge.inference": "int8"},
}
MAIN = tuple(ARMS)[:5]


def run(arm: str, seed: int, *, root: str, warm: Path) -> dict[str, Any]:
    """Train one arm with one seed, from the warm-up of that seed; return what came of it."""
    from mlecs_lightning.callbacks import FederatedCallback
    from mlecs_lightning.cli import FederatedCLI

    class Prepared(FederatedCLI):
        def _run_subcommand(self, subcommand: str) -> None:
            return

    class Keep(FederatedCallback):
        """Copies the state in which round 0 begins: the cloud warm, the device handed over."""

        def on_fit_start(self, *, max_rounds: int, clients: tuple[str, ...], folder: str) -> None:
            self.folder = Path(folder)

        def on_round_start(self, *, round: int, participants: tuple[str, ...]) -> None:
            file = self.folder / "checkpoints" / "round=0000-partial.ckpt"
            if round == 0 and file.exists() and not warm.exists():
                shutil.copy(file, warm)

    with tempfile.TemporaryDirectory() as folder:
        options = {
            **{"seed_everything": seed, "data.init_args.root": root},
            **{"trainer.default_root_dir": folder, "trainer.enable_progress_bar": "false"},
            **{"trainer.allow_other_config": "true", "trainer.save_top_k": 0},
        }
        arm_options = ARMS[arm].items()
        values = {k: v if isinstance(v, str) else json.dumps(v) for k, v in arm_options}
        args = [f"--{k}={v}" for k, v in {**options, **values}.items()]
        cli = Prepared(["fit", "--config", str(CONFIG), *args])
        cli.trainer._callbacks.append(Keep())  # type: ignore[attr-defined]
        state = str(warm) if warm.exists() else None
        summary = cli.trainer.fit(cli.algorithm, cli.datamodule, cli.federation, state)
    wire = summary["communication"]
    stream = summary["stream"]["clients"]["device"]["macro_f1"]
    return {
        **{"arm": arm, "seed": seed, **stream, "whole": summary["mean"]["own"]["macro_f1"]},
        **{"teacher": summary["server"]["macro_f1"]},
        **{"uplink": wire["uplink_bytes"], "downlink": wire["downlink_bytes"]},
        "error": wire.get("reconstruction_error", {}).get("downlink", []),
        "seconds": summary["seconds"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the means over the seeds, with their standard deviations, as Markdown."""
    by_arm: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_arm[row["arm"]].append(row)
    columns = ("present", "final", "forgetting", "whole")
    lines = [f"| arm | seeds | {' | '.join(columns)} | up, kB | down, kB |", "|---" * 8 + "|"]
    for arm in (a for a in ARMS if a in by_arm):
        cells = []
        for column in columns:
            values = [row[column] for row in by_arm[arm]]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}")
        wire = [
            f"{statistics.mean(row[way] for row in by_arm[arm]) / 1000:.1f}"
            for way in ("uplink", "downlink")
        ]
        lines.append(f"| {arm} | {len(by_arm[arm])} | {' | '.join([*cells, *wire])} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--root", help="folder of the UR Fall files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=list(MAIN), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    rows = read_lines(args.out)
    if args.table:
        print(table(rows))
        return
    done = {(row["arm"], row["seed"]) for row in rows}
    for seed in args.seeds:
        warm = args.out.with_name(f"{args.out.stem}-warm-{seed}.ckpt")
        for arm in (a for a in args.arms if (a, seed) not in done):
            row = run(arm, seed, root=args.root, warm=warm)
            print(row, flush=True)
            append_line(args.out, row)


if __name__ == "__main__":
    main()
