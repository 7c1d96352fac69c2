"""What a network costs beside the training: rounds over Flower and TLS, and rounds in one process.

    python -m benchmarks.network [--devices 2 8] [--rounds 5] [--flower .flower-venv/bin]
        [--python PATH/bin/python]

FedAvg on scikit-learn's digits, as a `Manifest` of files, so that devices need no scikit-learn;
server and devices are processes on the loopback interface, one thread each. The seconds of a round
are those of metrics.csv. *memory*: largest PSS of the processes of the last device, at the same
moment, and the share of Flower's. ``--python`` is the interpreter of the devices: that of an
environment with a plain ``pip install .`` shows what a device needs that has no extra.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import yaml
from sklearn.datasets import load_digits

from benchmarks.harness import REPOSITORY, hardware, process_pss, spread, tree_pss
from mlecs_lightning.network.flower.processes import free_port

MLECS = [sys.executable, "-m", "mlecs_lightning"]
SENSORS = (["pixels", "profile"], ["pixels"], ["profile"])


class Measured(NamedTuple):
    """One run.

    Attributes:
        first: Seconds of the program without the further rounds: start, first round and test.
        rounds: Seconds of each further round.
        memory: Bytes of one device, and those of Flower's processes among them; 0 in a simulation.
    """

    first: float
    rounds: list[float]
    memory: tuple[int, int] = (0, 0)


def samples(devices: int, path: Path) -> None:
    """Write the manifest: a third of the digits public, a sixth for the test, the rest dealt."""
    digits = load_digits()
    with path.open("w", encoding="utf-8") as file:
        for n, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            split = "public" if n % 6 < 2 else "test" if n % 6 == 2 else "train"
            owner = {"client": f"device{n // 6 % devices}"} if split != "public" else {}
            values = {"pixels": [image.ravel().tolist()], "profile": [image.sum(0).tolist()]}
            line = {"id": f"{n}", "split": split, **owner, "target": f"this is a {label}"}
            file.write(json.dumps({**line, "modalities": values}) + "\n")


def configuration(devices: int, rounds: int, root: Path) -> Path:
    """Write the YAML of a run, and return its path."""
    model = {
        "backbone": {"model": "pocket/slm"},
        "lora": {"r": 8, "alpha": 16},
        "connector": {"width": 64, "prompt_length": 8},
        "max_new_tokens": 12,
    }
    trainer = {
        "max_rounds": rounds,
        "accelerator": "cpu",
        "check_val_every_n_rounds": 0,
        "limit_test_batches": 1,
        "save_top_k": 0,
        "enable_progress_bar": False,
        "name": "run",
    }
    steps = {"warmup": 0, "public": 10, "private": 10, "server": 1}
    samples(devices, root / "samples.jsonl")
    sensors = {"pixels": [1, 64], "profile": [1, 8]}
    data = {
        "file": str(root / "samples.jsonl"),
        "modalities": {name: {"kind": "series", "shape": at} for name, at in sensors.items()},
        "instruction": "which digit ?",
    }
    clients = {f"device{i}": {"modalities": SENSORS[i % len(SENSORS)]} for i in range(devices)}
    values = {
        "seed_everything": 27,
        "trainer": trainer,
        "data": {"class_path": "Manifest", "init_args": data},
        "algorithm": {"class_path": "FedAvg", "init_args": {"steps": steps}},
        "server": model,
        "edge": model,
        "clients": clients,
    }
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def seconds_of(root: Path) -> list[float]:
    """Return the seconds of the run at the end of each round."""
    with (root / "run" / "version_0" / "metrics.csv").open(encoding="utf-8") as file:
        return [float(row["seconds"]) for row in csv.DictReader(file) if row.get("seconds")]


def environment() -> dict[str, str]:
    """Return the environment of all processes."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def started(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process, and stop it at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment())
        try:
            yield process
        finally:
            process.terminate()
            process.wait()


def simulated(config: Path, root: Path) -> Measured:
    """Run all devices in one process."""
    command = [*MLECS, "fit", "--config", str(config), "--trainer.default_root_dir", str(root)]
    began = time.perf_counter()
    with started(command, root / "fit.log") as process:
        if process.wait():
            raise RuntimeError((root / "fit.log").read_text(encoding="utf-8"))
    return _measured(root, time.perf_counter() - began)


def on_a_network(config: Path, root: Path, flower: Path, devices: int, python: str) -> Measured:
    """Run every device as a process of its own, with an interpreter of its own."""
    keys, port = str(root / "keys"), free_port()
    names = [f"device{i}" for i in range(devices)]
    for words in (["server"], *(["device", name] for name in names)):
        made = [*MLECS, "keys", *words, "--dir", keys]
        subprocess.run(made, check=True, capture_output=True, env=environment())
    common = ["--config", str(config), "--keys", keys, "--flower", str(flower)]
    common += ["--trainer.default_root_dir", str(root)]
    began, memory = time.perf_counter(), (0, 0)
    with contextlib.ExitStack() as stack:
        serve = [*MLECS, "serve", *common, "--host", "127.0.0.1", "--port", str(port)]
        server = stack.enter_context(started(serve, root / "serve.log"))
        for name in names:
            join = [
                python,
                *MLECS[1:],
                "join",
                *common,
                "--client",
                name,
                "--address",
                f"127.0.0.1:{port}",
            ]
            device = stack.enter_context(started(join, root / f"{name}.log"))
        while server.poll() is None:
            whole, ours = tree_pss(device.pid), process_pss(device.pid)
            memory = max(memory, (whole, whole - ours))
            time.sleep(0.5)
        if server.returncode:
            raise RuntimeError((root / "serve.log").read_text(encoding="utf-8"))
    return _measured(root, time.perf_counter() - began, memory)


def _measured(root: Path, whole: float, memory: tuple[int, int] = (0, 0)) -> Measured:
    ends = seconds_of(root)
    rounds = [later - earlier for earlier, later in pairwise(ends)]
    return Measured(whole - (ends[-1] - ends[0]), rounds, memory)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flower", type=Path, default=REPOSITORY / ".flower-venv" / "bin")
    parser.add_argument("--python", default=sys.executable)
    args = parser.parse_args()
    print(hardware())
    columns = ["devices", "run", "start, first round, test", "further rounds, s (min-max)"]
    print(f"| {' | '.join([*columns, 'more', 'memory, MB (of it Flower)'])} |")
    print("|---:|---|---:|---:|---:|---:|")
    for devices in args.devices:
        base: list[float] = []
        for name in ("one process", "network"):
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                config = configuration(devices, args.rounds, root)
                if name == "network":
                    found = on_a_network(config, root, args.flower.resolve(), devices, args.python)
                else:
                    found = simulated(config, root)
            base = base or found.rounds
            more = f"{median(found.rounds) - median(base):+.1f} s"
            whole, flower = (f"{part / 2**20:.0f}" for part in found.memory)
            memory = f"{whole} ({flower})" if found.memory[0] else "-"
            print(
                f"| {devices} | {name} | {found.first:.0f} s | {spread(found.rounds)} | {more} "
                f"| {memory} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
