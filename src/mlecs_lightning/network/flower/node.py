"""A device's connection over Flower: a SuperNode that dials the server."""

from __future__ import annotations

import logging
import shutil
import socket
import tempfile
import time
from multiprocessing.connection import Connection, Listener
from pathlib import Path

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.network.flower.processes import Guarded, free_port, program
from mlecs_lightning.network.identity.diagnosis import connection_fault, split_address
from mlecs_lightning.network.identity.keys import device_key

__all__ = ["Node"]

log = logging.getLogger(__name__)

_PATIENCE = (1.0, 2.0, 5.0, 10.0, 20.0)
_SILENCE, _LONGEST = 10.0, 300.0
"""Seconds until the first look at a server that has not been heard, and between later ones."""


class Node:
    """Flower's SuperNode, which dials the server; started again whenever it ends."""

    def __init__(
        self, address: str, client: str, keys: Path, log_file: Path, flower: Path | None
    ) -> None:
        """Check the address and the key.

        Args:
            address: The server's, as HOST:PORT.
            client: The client that this device is.
            keys: Folder of the authority's certificate and of the device's key.
            log_file: Gets what the SuperNode prints.
            flower: Folder of Flower's programs; see `program`.

        Raises:
            ConfigurationError: If the address is none, or a key or a program is missing.
        """
        split = split_address(address)
        if split is None:
            raise ConfigurationError(f"--address must be HOST:PORT or [IPV6]:PORT, got {address!r}")
        self._server = split
        authority, key = device_key(keys, client)
        self._authority, self._log = authority, log_file
        # A short path, as a Unix socket needs, which nobody else can open.
        self._home = Path(tempfile.mkdtemp(prefix="mlecs-"))
        self._socket = str(self._home / "device.sock")
        self._listener = Listener(self._socket, "AF_UNIX")
        self._command = [program("flower-supernode", flower), "--superlink", address]
        self._command += ["--root-certificates", str(authority)]
        self._command += ["--auth-supernode-private-key", str(key)]
        self._child: Guarded | None = None
        self._failures, self._due = 0, 0.0
        self._look, self._pause = time.monotonic() + _SILENCE, _SILENCE
        self._said = ""

    def start(self) -> None:
        """Start it."""
        env = {"FLWR_HOME": str(self._home), "MLECS_SOCKET": self._socket}
        command = [*self._command, "--port", str(free_port())]
        self._child = Guarded(command, log=self._log, env=env)

    def watch(self) -> None:
        """Start it again if it has ended, each time after a longer pause; say what is wrong."""
        if self._child is not None and not self._child.runs:
            self._child = None
            pause = _PATIENCE[min(self._failures, len(_PATIENCE) - 1)]
            self._failures, self._due = self._failures + 1, time.monotonic() + pause
            why = connection_fault(*self._server, self._authority) or f"see {self._log}"
            log.warning("the connection has ended: %s; next try in %g s", why, pause)
        if self._child is None and time.monotonic() >= self._due:
            self.start()
        if self._pause and time.monotonic() >= self._look:
            self._diagnose()

    def _diagnose(self) -> None:
        """Log why the server has not been heard, once for each reason: Flower tries silently."""
        self._pause = min(2 * self._pause, _LONGEST)
        fault = connection_fault(*self._server, self._authority)
        if fault and fault != self._said:
            log.warning("the server has not been heard: %s; going on trying", fault)
        self._said, self._look = fault, time.monotonic() + self._pause

    @property
    def waiting(self) -> socket.socket:
        """Becomes readable when a request waits; the listener has no timeout of its own."""
        return self._listener._listener._socket  # type: ignore[attr-defined,no-any-return]

    def accept(self) -> Connection:
        """Return the connection of a request."""
        self._failures, self._pause = 0, 0.0  # the server has been reached
        return self._listener.accept()

    def close(self) -> None:
        """Stop it."""
        if self._child is not None:
            self._child.stop()
        self._listener.close()
        shutil.rmtree(self._home, ignore_errors=True)
