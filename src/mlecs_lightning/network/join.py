"""``mlecs join``: a device of a run that ``mlecs serve`` serves."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path

from rich.console import Console

from mlecs_lightning.clients.settings import FederationSettings
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.federated import FederatedTrainer
from mlecs_lightning.network.device import open_device
from mlecs_lightning.network.envelope import Envelope
from mlecs_lightning.network.keys import device_key
from mlecs_lightning.network.processes import Guarded, free_port, program
from mlecs_lightning.network.session import DeviceSession
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.rounds.signals import Interrupted, StopSignals
from mlecs_lightning.storage.paths import expanded

__all__ = ["join"]

log = logging.getLogger(__name__)

_POLL = 0.5
_PATIENCE = (1.0, 2.0, 5.0, 10.0, 20.0)


def join(
    self: FederatedTrainer,
    algorithm: Algorithm,
    datamodule: FederatedDataModule,
    federation: FederationSettings,
    client: str,
    address: str,
    keys: str = "keys",
    allow: list[str] | None = None,
    flower: str | None = None,
) -> str:
    """Train one client on this machine, with its own data, for a server on the network.

    States are kept in ``default_root_dir/name/CLIENT``: a device that is started again goes on from
    the last round that the server knows of.

    Args:
        self: The trainer.
        algorithm: The method, as at the server.
        datamodule: The data, of which the public samples and this client's must be here.
        federation: Server, edges and clients, as at the server.
        client: The client that this device is.
        address: The server's, as HOST:PORT.
        keys: Folder of the authority's certificate and of this device's key; see ``mlecs keys``.
        allow: What may leave this device, such as ``[adapter, modalities, samples, report]``: the
            components that the ledger counts, and scalars. By default all that the algorithm
            declares.
        flower: Folder of Flower's programs; by default beside this Python, then on the PATH.

    Returns:
        The folder of the device.

    Raises:
        ConfigurationError: If the settings do not fit together, or a key is missing.
        Interrupted: After SIGTERM or SIGINT.
    """
    self._fabric.launch()
    folder = self.settings.root / (self.settings.name or type(algorithm).__name__) / client
    folder.mkdir(parents=True, exist_ok=True)
    home = expanded(keys, key="--keys")
    node = _Node(
        address,
        client,
        home,
        folder / "supernode.log",
        None if flower is None else expanded(flower, key="--flower"),
    )
    with StopSignals() as stop:
        session = open_device(
            client,
            algorithm=algorithm,
            data=datamodule,
            federation=federation,
            trainer=self.settings,
            fabric=self._fabric,
            folder=folder,
            check=stop.check,
            allow=allow,
        )
        try:
            node.start()
            Console(stderr=True).print(f"{client}: ready, dials {address}; its states: {folder}")
            _answer(session, node, stop)
        finally:
            node.close()
    return str(folder)


class _Node:
    """Flower's SuperNode, which dials the server; started again whenever it ends."""

    def __init__(
        self, address: str, client: str, keys: Path, log_file: Path, flower: Path | None
    ) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigurationError(f"--address must be HOST:PORT, got {address!r}")
        authority, key = device_key(keys, client)
        self._log = log_file
        # A short path, as a Unix socket needs, which nobody else can open.
        self._home = Path(tempfile.mkdtemp(prefix="mlecs-"))
        self._socket = str(self._home / "device.sock")
        self.listener = Listener(self._socket, "AF_UNIX")
        self._command = [program("flower-supernode", flower), "--superlink", address]
        self._command += ["--root-certificates", str(authority)]
        self._command += ["--auth-supernode-private-key", str(key)]
        self._child: Guarded | None = None
        self._failures, self._due = 0, 0.0

    def start(self) -> None:
        """Start it."""
        env = {"FLWR_HOME": str(self._home), "MLECS_SOCKET": self._socket}
        command = [*self._command, "--port", str(free_port())]
        self._child = Guarded(command, log=self._log, env=env)

    def watch(self) -> None:
        """Start it again if it has ended, each time after a longer pause."""
        if self._child is not None and not self._child.runs:
            self._child = None
            pause = _PATIENCE[min(self._failures, len(_PATIENCE) - 1)]
            self._failures, self._due = self._failures + 1, time.monotonic() + pause
            log.warning("the connection has ended, see %s; next try in %g s", self._log, pause)
        if self._child is None and time.monotonic() >= self._due:
            self.start()

    def worked(self) -> None:
        """Note that the server has been reached."""
        self._failures = 0

    def close(self) -> None:
        """Stop it."""
        if self._child is not None:
            self._child.stop()
        self.listener.close()
        shutil.rmtree(self._home, ignore_errors=True)


def _answer(session: DeviceSession, node: _Node, stop: StopSignals) -> None:
    """Answer requests until the run has ended.

    Raises:
        Interrupted: After a signal.
    """
    while not session.ended:
        stop.check()
        node.watch()
        # The listener has no timeout of its own.
        if not wait([node.listener._listener._socket], _POLL):  # type: ignore[attr-defined]
            continue
        with node.listener.accept() as asking:
            node.worked()
            _answer_one(session, asking)


def _answer_one(session: DeviceSession, asking: Connection) -> None:
    try:
        request = asking.recv_bytes()
        try:
            answer = session.answer(request)
        except Interrupted:
            asking.send_bytes(Envelope("stopped", {"client": session.client}).to_bytes())
            raise
        asking.send_bytes(answer)
    except (EOFError, OSError) as error:
        log.warning("an answer was lost: %s", error)  # the server asks again
