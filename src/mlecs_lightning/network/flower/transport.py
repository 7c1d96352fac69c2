"""The server's transport over Flower: a SuperLink, and a ServerApp that hands bytes over.

Flower carries and authenticates; it neither trains nor aggregates. Devices dial out to the
SuperLink. All of Flower's processes end with this one.
"""

from __future__ import annotations

import json
import logging
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.network.flower.processes import (
    Guarded,
    check_port,
    environment,
    local_address,
    program,
    wait_for_port,
)
from mlecs_lightning.network.identity.diagnosis import certificate_fault
from mlecs_lightning.network.identity.keys import device_names, public_key, server_files
from mlecs_lightning.network.link import Arrival

__all__ = ["FlowerTransport"]

log = logging.getLogger(__name__)

_START = 180.0
_CONNECTION = "mlecs"
BRIDGE = Path(__file__).parent / "bridge"


class FlowerTransport:
    """A SuperLink with TLS, at which the devices of a run are registered by their keys."""

    def __init__(
        self,
        clients: Collection[str],
        *,
        host: str,
        port: int,
        keys: Path,
        folder: Path,
        flower: Path | None = None,
        max_bytes: int | None = None,
    ) -> None:
        """Start Flower, and wait until its ServerApp runs.

        Args:
            clients: The clients of the run.
            host: Address to listen on.
            port: Port to listen on.
            keys: Folder of the server's certificate and of the devices' public keys.
            folder: Where Flower's logs go.
            flower: Folder of Flower's programs; by default beside this Python, then on the PATH.
            max_bytes: Maximum length of an answer.

        Raises:
            ConfigurationError: If a key or a program is missing, or Flower does not start.
        """
        authority, certificate, key = server_files(keys)
        _check_devices(clients, keys)
        check_port(host, port)
        local = local_address(host)
        bracketed = f"[{local}]" if ":" in local else local
        self._flwr = program("flwr", flower)
        self._max_bytes, self._logs = max_bytes, folder
        # A short path, as a Unix socket needs, which nobody else can open.
        self._home = Path(tempfile.mkdtemp(prefix="mlecs-"))
        self._socket = str(self._home / "server.sock")
        self._lock = threading.Lock()
        self._arrived: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._online: frozenset[int] = frozenset()
        self._under_way: set[str] = set()
        self._bridge: Connection | None = None
        self._count, self._closed = 0, False
        connection = [
            f'[superlink]\ndefault = "{_CONNECTION}"',
            f"[superlink.{_CONNECTION}]",
            f'address = "{bracketed}:{port}"',
            f'root-certificates = "{authority.resolve()}"',
        ]
        (self._home / "config.toml").write_text("\n".join(connection) + "\n", encoding="utf-8")
        command = [program("flower-superlink", flower), "--host", host, "--port", str(port)]
        command += ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)]
        command += ["--ssl-ca-certfile", str(authority), "--enable-supernode-auth"]
        command += ["--disable-runtime-dependency-installation"]
        superlink = folder / "superlink.log"
        self._superlink = Guarded(command, log=superlink, env={"FLWR_HOME": str(self._home)})
        try:
            wait_for_port(local, port, self._superlink, seconds=_START, log=superlink)
            if fault := certificate_fault(local, port, authority):
                raise ConfigurationError(f"--keys {keys}: devices would refuse {fault}")
            self._nodes = self._register(clients, keys)
            self._listener = Listener(self._socket, "AF_UNIX")
            threading.Thread(target=self._serve_bridge, daemon=True).start()
        except BaseException:
            self.close()
            raise
        self._clients = {node: client for client, node in self._nodes.items()}

    def _run_flwr(self, *words: str) -> dict[str, Any]:
        """Run a command of Flower, and return what it prints as JSON.

        Raises:
            ConfigurationError: If it fails; with its words.
        """
        try:
            done = subprocess.run(
                [self._flwr, *words, "--format", "json"],
                capture_output=True,
                text=True,
                check=False,
                timeout=_START,
                env=environment(self._flwr, FLWR_HOME=str(self._home)),
            )
        except subprocess.TimeoutExpired as error:
            raise ConfigurationError(
                f"Flower: `flwr {' '.join(words)}` did not end within {_START:g} s; is this "
                f"machine too busy? SuperLink's log is {self._logs / 'superlink.log'}"
            ) from error
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            answer = {}
        if not isinstance(answer, dict) or not answer.get("success"):
            words_said = (done.stdout + done.stderr)[-1500:]
            raise ConfigurationError(f"Flower: `flwr {' '.join(words)}` failed:\n{words_said}")
        return answer

    def _register(self, clients: Collection[str], keys: Path) -> dict[str, int]:
        """Register the keys of all devices; return the node of each client."""

        def node(client: str) -> int:
            answer = self._run_flwr("supernode", "register", str(public_key(keys, client)))
            return int(answer["node-id"])

        with ThreadPoolExecutor(min(4, len(clients))) as pool:
            return dict(zip(clients, pool.map(node, clients), strict=True))

    # The ServerApp ----------------------------------------------------------------------------

    def _serve_bridge(self) -> None:
        """Run the ServerApp, and start it again if it ends."""
        while not self._closed:
            try:
                config = f'socket="{self._socket}" limit={self._max_bytes or 0}'
                self._run_flwr("run", str(BRIDGE), _CONNECTION, "-c", config)
                bridge = self._listener.accept()
            except (ConfigurationError, subprocess.SubprocessError, OSError) as error:
                if not self._closed:
                    log.warning("Flower's ServerApp did not start: %s", error)
                    time.sleep(2.0)
                continue
            with self._lock:
                self._bridge = bridge
            self._read(bridge)
            self._lost()

    def _read(self, bridge: Connection) -> None:
        while True:
            try:
                line, _, data = bridge.recv_bytes().partition(b"\n")
            except (EOFError, OSError):
                return
            header = json.loads(line)
            if "nodes" in header:
                self._online = frozenset(int(node) for node in header["nodes"])
                continue
            ticket = str(header["ticket"])
            self._under_way.discard(ticket)
            if error := header.get("error"):
                log.info("Flower: %s", error)
            self._arrived.put(Arrival(ticket, None if error else data))

    def _lost(self) -> None:
        """Tell the link that nothing will come of what was under way."""
        with self._lock:
            self._bridge = None
            lost, self._under_way = self._under_way, set()
        self._online = frozenset()
        for ticket in lost:
            self._arrived.put(Arrival(ticket, None))

    # The transport ----------------------------------------------------------------------------

    def online(self) -> Collection[str]:
        """See `Transport`."""
        return {self._clients[node] for node in self._online if node in self._clients}

    def send(self, client: str, data: bytes) -> str:
        """See `Transport`."""
        with self._lock:
            self._count += 1
            ticket = f"{self._count}"
            header = {"ticket": ticket, "node": str(self._nodes[client])}
            try:
                if self._bridge is None:
                    raise OSError("the ServerApp is away")
                self._bridge.send_bytes(json.dumps(header).encode() + b"\n" + data)
                self._under_way.add(ticket)
            except OSError:
                self._arrived.put(Arrival(ticket, None))
        return ticket

    def receive(self, timeout: float) -> Iterable[Arrival]:
        """See `Transport`."""
        if not self._superlink.runs:
            raise ConfigurationError(
                f"Flower's SuperLink has ended; its log is {self._logs / 'superlink.log'}; "
                "--ckpt_path last resumes the run"
            )
        found = []
        try:
            found.append(self._arrived.get(timeout=timeout))
            while True:
                found.append(self._arrived.get_nowait())
        except queue.Empty:
            return found

    def close(self) -> None:
        """Stop Flower."""
        self._closed = True
        with self._lock:
            if self._bridge is not None:
                self._bridge.close()
        if hasattr(self, "_listener"):
            self._listener.close()
        self._superlink.stop()
        shutil.rmtree(self._home, ignore_errors=True)


def _check_devices(clients: Collection[str], keys: Path) -> None:
    """Refuse clients whose devices have no key here.

    Raises:
        ConfigurationError: It names them, and the keys that there are.
    """
    missing = [client for client in clients if not public_key(keys, client).is_file()]
    if missing:
        raise ConfigurationError(
            f"--keys {keys}: no public key of {missing}, only of {device_names(keys)}; make it on "
            "the device with `mlecs keys device NAME`, and copy NAME.pub here"
        )
