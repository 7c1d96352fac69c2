"""Run `warmup` and `fit` on two nodes of one machine, and compare them with one process.

    sudo python scripts/two_nodes.py

The nodes are network namespaces with addresses of their own, joined by a pair of virtual Ethernet
devices: the processes of one reach those of the other by this link alone. Each node runs torchrun
with a rendezvous at the first one. Afterwards every process prints its rank and the SHA-256 of all
weights of the server that train. They must be equal on both nodes, and the weights equal to those
of one process to 1e-6.

The fit starts from the checkpoint of the warm-up. Dropout is off and the optimiser is SGD:
processes draw different dropout masks for their parts of a batch, and Adam takes steps of full size
along gradients that are rounding errors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PORT = 29507
TOLERANCE = 1e-6
TIMEOUT = 900  # seconds for one command on both nodes

CONFIG = """
seed_everything: 3
trainer:
  max_rounds: 2
  accelerator: cpu
  devices: 1
  limit_val_batches: 1
  limit_test_batches: 1
  enable_progress_bar: false
  name: two_nodes
warmup:
  max_steps: 5
  logger: false
  enable_model_summary: false
data:
  class_path: Digits
  init_args: {batch_size: 15, alpha: 5.0}
algorithm:
  class_path: MLECS
  init_args: {freeze_extractors: false, steps: {warmup: 2, public: 2, private: 2, server: 2}}
server: &model
  backbone: {model: pocket/slm}
  lora: {r: 4, alpha: 8, dropout: 0.0}
  connector: {width: 32, prompt_length: 8, dropout: 0.0}
  optimizer: {class_path: SGD, init_args: {lr: 0.03, momentum: 0.9}}
  max_new_tokens: 8
edge: *model
clients:
  kitchen: {modalities: [pixels, profile]}
  hall: {modalities: [profile, fourier]}
  study: {modalities: [pixels]}
"""


class Node(NamedTuple):
    """A network namespace that plays a machine."""

    namespace: str
    device: str
    address: str


# One process of a node ----------------------------------------------------------------------------


def work(out: Path, args: list[str]) -> int:
    """Run the command line; leave rank, weights and their hash in a folder."""
    import torch
    from torch.optim import Optimizer

    from mlecs_lightning.cli import main
    from mlecs_lightning.modules import ServerModule

    servers: list[ServerModule] = []
    configure = ServerModule.configure_optimizers

    def remember(self: ServerModule, **options: bool) -> Optimizer:
        servers.append(self)
        return configure(self, **options)

    ServerModule.configure_optimizers = remember  # type: ignore[method-assign]
    if code := main(args):
        return code
    weights = {k: v.cpu() for k, v in sorted(servers[-1].trainable_state().items())}
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    rank = int(os.environ.get("RANK", 0))
    facts = {
        "rank": rank,
        "size": int(os.environ.get("WORLD_SIZE", 1)),
        "node": int(os.environ.get("GROUP_RANK", 0)),
        "network": str(Path("/proc/self/ns/net").readlink()),
        "sha256": digest.hexdigest(),
    }
    (out / f"{rank}.json").write_text(json.dumps(facts), encoding="utf-8")
    torch.save(weights, out / f"{rank}.pt")
    return 0


# The nodes ----------------------------------------------------------------------------------------


def ip(*args: str) -> None:
    """Call iproute2."""
    subprocess.run(["ip", *args], check=True)


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Make two namespaces joined by a link; remove them whatever happens."""
    key = f"{os.getpid() % 100_000}"
    nodes = (
        Node(f"mlecs-{key}-0", f"mlecs{key}a", "10.77.0.1"),
        Node(f"mlecs-{key}-1", f"mlecs{key}b", "10.77.0.2"),
    )
    with ExitStack() as stack:
        for node in nodes:
            ip("netns", "add", node.namespace)
            # The link goes with the namespaces that hold its ends.
            stack.callback(ip, "netns", "del", node.namespace)
        first, second = nodes
        link = ("link", "add", first.device, "netns", first.namespace, "type", "veth")
        ip(*link, "peer", "name", second.device, "netns", second.namespace)
        for node in nodes:
            inside = ("-n", node.namespace)
            ip(*inside, "addr", "add", f"{node.address}/24", "dev", node.device)
            ip(*inside, "link", "set", node.device, "up")
            ip(*inside, "link", "set", "lo", "up")
        yield nodes


def environment(**values: str) -> dict[str, str]:
    """Return the environment of a process: one thread, no hub, this checkout."""
    ours = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **ours, "PYTHONPATH": path, **values}


def run_on(nodes: Sequence[Node], processes: int, out: Path, args: Sequence[str]) -> None:
    """Run the command line on both nodes at once.

    Raises:
        SystemExit: If it fails on one of them, with what it said.
    """
    out.mkdir(parents=True)
    running: list[tuple[Node, subprocess.Popen[str]]] = []
    try:
        for rank, node in enumerate(nodes):
            command = [
                *("ip", "netns", "exec", node.namespace, sys.executable, "-m"),
                *("torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank)),
                *("--nproc-per-node", str(processes), "--local-addr", node.address),
                *("--master-addr", nodes[0].address, "--master-port", str(PORT)),
                *(str(Path(__file__).resolve()), "--worker", str(out), *args),
            ]
            running.append((node, start(command, GLOO_SOCKET_IFNAME=node.device)))
        said = [process.communicate(timeout=TIMEOUT)[0] for _, process in running]
    finally:
        for _, process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    for (node, process), text in zip(running, said, strict=True):
        if process.returncode:
            sys.exit(f"{text}\n{args[0]} failed on {node.namespace} ({process.returncode})")


def run_alone(out: Path, args: Sequence[str]) -> None:
    """Run the command line in one process, without nodes.

    Raises:
        SystemExit: If it fails, with what it said.
    """
    out.mkdir(parents=True)
    process = start([sys.executable, str(Path(__file__).resolve()), "--worker", str(out), *args])
    try:
        text, _ = process.communicate(timeout=TIMEOUT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        sys.exit(f"{text}\n{args[0]} failed in one process ({process.returncode})")


def start(command: list[str], **values: str) -> subprocess.Popen[str]:
    """Start a process in a session of its own, so that it can be ended with its children."""
    return subprocess.Popen(
        command,
        env=environment(**values),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


# The comparison -----------------------------------------------------------------------------------


def compare(command: str, nodes: Sequence[Node], together: Path, alone: Path) -> list[str]:
    """Print what every process ended with; return what is wrong."""
    import torch

    ranks = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(together.glob("*.json"))
    ]
    (one,) = [json.loads(path.read_text(encoding="utf-8")) for path in alone.glob("*.json")]
    for facts in ranks:
        node = nodes[facts["node"]]
        print(
            f"{command:6}  node {facts['node']} ({node.address}, {facts['network']})  "
            f"rank {facts['rank']} of {facts['size']}  sha256 {facts['sha256']}"
        )
    print(f"{command:6}  one process{' ' * 40}sha256 {one['sha256']}")
    faults = []
    if len({facts["sha256"] for facts in ranks}) != 1:
        faults.append(f"{command}: the processes end with different weights")
    if {facts["network"] for facts in ranks} & {one["network"]}:
        faults.append(f"{command}: a process of a node ran outside of its namespace")
    if len({facts["network"] for facts in ranks}) != 2:
        faults.append(f"{command}: the processes did not run in two namespaces")
    first, second = (torch.load(folder / "0.pt", weights_only=True) for folder in (together, alone))
    distance = max(float((first[k] - second[k]).abs().max()) for k in second)
    moved = sum(float(value.abs().sum()) for value in second.values())
    print(f"{command:6}  largest difference of a weight to one process: {distance:.1e}")
    if not distance <= TOLERANCE or not moved > 0:
        faults.append(f"{command}: differs from one process by {distance:.1e}, over {TOLERANCE}")
    return faults


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument(
        "--commands", nargs="+", default=["warmup", "fit"], choices=["warmup", "fit"]
    )
    parser.add_argument("--processes", type=int, default=1, help="processes of each node")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the commands on two nodes and in one process; say whether they agree."""
    options = parse(argv)
    if os.geteuid() != 0 or shutil.which("ip") is None:
        print(
            "error: network namespaces need root and iproute2 (the command `ip`): "
            "sudo python scripts/two_nodes.py",
            file=sys.stderr,
        )
        return 2
    # So that the namespaces go, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    faults = []
    with tempfile.TemporaryDirectory(prefix="two_nodes-") as folder, two_nodes() as nodes:
        root = Path(folder)
        config = root / "config.yaml"
        config.write_text(CONFIG, encoding="utf-8")
        for command in options.commands:
            given: dict[str, list[str]] = {}
            for who in ("alone", "together"):
                given[who] = [command, "--config", str(config)]
                given[who] += ["--trainer.default_root_dir", str(root / command / who / "runs")]
                saved = list((root / "warmup" / who / "runs").glob("checkpoints/*.ckpt"))
                if command == "fit" and saved:
                    given[who] += ["--trainer.warmup_ckpt_path", str(saved[0])]
            devices = ["--trainer.num_nodes", "2", "--trainer.devices", str(options.processes)]
            alone, together = root / command / "alone", root / command / "together"
            run_alone(alone, given["alone"])
            run_on(nodes, options.processes, together, [*given["together"], *devices])
            faults += compare(command, nodes, together, alone)
    print("\n".join(faults) if faults else "both nodes and one process agree")
    return 1 if faults else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        sys.exit(work(Path(sys.argv[2]), sys.argv[3:]))
    sys.exit(main())
