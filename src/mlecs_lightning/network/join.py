"""``mlecs join``: a device of a run that ``mlecs serve`` serves."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path

from rich.console import Console

from mlecs_lightning.clients.settings import Federation
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.federated import FederatedTrainer
from mlecs_lightning.network.device import open_device
from mlecs_lightning.network.envelope import Envelope
from mlecs_lightning.network.finish import finish
from mlecs_lightning.network.flower.node import Node
from mlecs_lightning.network.session import DeviceSession
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.rounds.signals import Interrupted, StopSignals
from mlecs_lightning.storage.paths import expanded

__all__ = ["join"]

log = logging.getLogger(__name__)

_POLL = 0.5


def join(
    self: FederatedTrainer,
    algorithm: Algorithm,
    datamodule: FederatedDataModule,
    federation: Federation,
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
            declares. Test scores leave it only if ``scores`` is named.
        flower: Folder of Flower's programs; by default beside this Python, then on the PATH.

    Returns:
        The folder of the device: states, ``summary.json`` with the scores on its own samples, and
        a checkpoint that ``mlecs export`` reads.

    Raises:
        ConfigurationError: If the settings do not fit together, or a key is missing.
        Interrupted: After SIGTERM or SIGINT.
    """
    self._fabric.launch()
    folder = self.settings.root / (self.settings.name or type(algorithm).__name__) / client
    folder.mkdir(parents=True, exist_ok=True)
    home = expanded(keys, key="--keys")
    node = Node(
        address,
        client,
        home,
        folder / "supernode.log",
        None if flower is None else expanded(flower, key="--flower"),
    )
    with _alone(folder), StopSignals() as stop:
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
        finish(session, folder, self._fabric)
    return str(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder of a device for this process.

    Raises:
        ConfigurationError: If another process holds it.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError(
                f"--client: another `mlecs join` of this client is running, in {str(folder)!r}"
            ) from error
        yield


def _answer(session: DeviceSession, node: Node, stop: StopSignals) -> None:
    """Answer requests until the run has ended.

    Raises:
        Interrupted: After a signal.
    """
    while not session.ended:
        stop.check()
        node.watch()
        if not wait([node.waiting], _POLL):
            continue
        with node.accept() as asking:
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
