"""Server and devices as processes of their own, over TLS on the loopback interface."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import yaml

from mlecs_lightning.checkpoints.checkpoint import checkpoint_of, client_state, load_checkpoint
from mlecs_lightning.cli import main
from mlecs_lightning.network.flower.processes import free_port
from mlecs_lightning.network.identity.keys import keys
from mlecs_lightning.network.store import DeviceStore

MLECS = [sys.executable, "-m", "mlecs_lightning"]
HERE = Path(__file__).parent
CLIENTS = {"kitchen": {"modalities": ["pixels", "profile"]}, "hall": {"modalities": ["fourier"]}}


def configuration(algorithm: str = "MLECS", **changed: Any) -> dict[str, Any]:
    model = {
        "backbone": {"model": "pocket/slm"},
        "lora": {"r": 2, "alpha": 4},
        "connector": {"width": 16, "prompt_length": 4},
        "max_new_tokens": 8,
    }
    trainer = {
        "max_rounds": 3,
        "accelerator": "cpu",
        "check_val_every_n_rounds": 0,
        "limit_test_batches": 1,
        "save_top_k": 0,
        "name": "net",
        "enable_progress_bar": False,
        "logger": False,
    }
    steps = {"warmup": 2, "public": 1, "private": 1, "server": 1}
    data = {"batch_size": 8, "partition": "dirichlet", "alpha": 5.0}
    return {
        "seed_everything": 27,
        "trainer": trainer,
        "data": {"class_path": "Digits", "init_args": data},
        "algorithm": {"class_path": algorithm, "init_args": {"steps": steps}},
        "server": model,
        "edge": model,
        "clients": CLIENTS,
        **changed,
    }


class Network:
    """A server and its devices; those that are killed are started again.

    ``environ`` gives each party variables of its own, ``keys`` a folder of keys and ``options``
    further words; ``within`` are words before the command. ``host`` is the server's address, and
    ``dialled`` the port that devices dial, where that is not the server's.
    """

    def __init__(self, folder: Path, config: dict[str, Any], flower: Path) -> None:
        self.folder, self.flower, self.port = folder, flower, free_port()
        self.config = folder / "config.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(yaml.safe_dump(config), encoding="utf-8")
        self.clients = list(config["clients"])
        self.environ: dict[str, dict[str, str]] = {}
        self.keys: dict[str, Path] = {}
        self.options: dict[str, list[str]] = {}
        self.within: dict[str, list[str]] = {}
        self.host = "127.0.0.1"
        self.dialled: int | None = None
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.codes: dict[str, list[int]] = {}

    def make_keys(self) -> None:
        for words in (
            ["server", "--host", self.host],
            *(["device", name] for name in self.clients),
        ):
            assert keys([*words, "--dir", str(self.folder / "keys")]) == 0

    def command(self, party: str, *, resumes: bool = False) -> list[str]:
        common = [
            "--config",
            str(self.config),
            "--keys",
            str(self.keys.get(party, self.folder / "keys")),
        ]
        common += ["--flower", str(self.flower)]
        common += ["--trainer.default_root_dir", str(self.folder / party)]
        if party == "server":
            words = ["serve", *common, "--host", self.host, "--port", str(self.port)]
            words += ["--ckpt_path", "last"] if resumes else []
        else:
            host = f"[{self.host}]" if ":" in self.host else self.host
            words = ["join", *common, "--client", party]
            words += ["--address", f"{host}:{self.dialled or self.port}"]
        within = self.within.get(party, [])
        return [*within, *MLECS, *words, *self.options.get(party, [])]

    def start(self, party: str, *, resumes: bool = False) -> None:
        environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),  # as in this process
            **self.environ.get(party, {}),
        }
        with (self.folder / f"{party}.log").open("ab") as log:
            self.running[party] = subprocess.Popen(
                self.command(party, resumes=resumes), stdout=log, stderr=log, env=environ
            )

    def log(self, party: str) -> str:
        return (self.folder / f"{party}.log").read_text(encoding="utf-8", errors="replace")

    def finish(self, *, seconds: float = 240.0) -> dict[str, list[int]]:
        """Wait for all; start again who was killed. Return the exit codes of each party."""
        start = time.monotonic()
        try:
            while self.running:
                for party, process in list(self.running.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del self.running[party]
                    self.codes.setdefault(party, []).append(code)
                    if code == -signal.SIGKILL:
                        self.start(party, resumes=party == "server")
                if time.monotonic() - start > seconds:
                    logs = "\n".join(f"{p}:\n{self.log(p)[-3000:]}" for p in self.running)
                    raise TimeoutError(f"{list(self.running)} did not end:\n{logs}")
                time.sleep(0.1)
        finally:
            for process in self.running.values():
                process.kill()
                process.wait()
        return self.codes

    def run(self, **options: Any) -> dict[str, list[int]]:
        self.make_keys()
        for party in ("server", *self.clients):
            self.start(party)
        return self.finish(**options)

    def state(self) -> dict[str, Any]:
        """Return the state of the server, the ledger, and each device's newest state."""
        saved = load_checkpoint(checkpoint_of(self.folder / "server" / "net" / "version_0"))
        ledger = of_rounds(saved["ledger"])
        found = {"server": plain(saved["server"]), "ledger": plain(ledger)}
        for client in self.clients:
            store = DeviceStore(self.folder / client / "net" / client / "states", client)
            store.go_back(store.rounds[-1])
            found[client] = plain(store.get(client))
        return found


def of_rounds(ledger: dict[str, Any]) -> dict[str, Any]:
    """Return the ledger without what a simulation does not send: first states, and scores."""
    return {k: [r for r in rows if r[0] in ("uplink", "downlink")] for k, rows in ledger.items()}


def simulated(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Run the same configuration with `fit`, in this process; return its state."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    words = ["fit", "--config", str(path), "--trainer.default_root_dir", str(folder)]
    with redirect_stdout(io.StringIO()):
        assert main(words) == 0
    path = checkpoint_of(folder / "net" / "version_0")
    saved = load_checkpoint(path)
    found = {part: plain(saved[part]) for part in ("server", "ledger")}
    return found | {c: plain(client_state(saved["clients"][c], path)) for c in saved["names"]}


def plain(value: object) -> object:
    """Return a state in a form that `==` compares bit by bit."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value
