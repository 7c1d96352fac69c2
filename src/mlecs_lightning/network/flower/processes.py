"""Flower's own programs: where they are, and how they are started, watched and stopped."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.network.flower import guard

__all__ = [
    "Guarded",
    "check_port",
    "environment",
    "free_port",
    "local_address",
    "program",
    "wait_for_port",
]

_ENVIRONMENT = {
    # A device runs what is installed on it, and reports to nobody.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}


def program(name: str, folder: Path | None) -> str:
    """Return the path of one of Flower's programs.

    Args:
        name: Such as ``flower-superlink``.
        folder: Where to look; by default beside this Python, then on the PATH.

    Raises:
        ConfigurationError: If it is not there.
    """
    beside = Path(sys.executable).parent
    places = [folder] if folder else [beside, *map(Path, os.get_exec_path())]
    found = shutil.which(name, path=os.pathsep.join(map(str, places)))
    if found is None:
        where = f"in {str(folder)!r}" if folder else f"in {str(beside)!r} or on the PATH"
        raise ConfigurationError(
            f"--flower: there is no {name} {where}; `pip install 'mlecs_lightning[flower]'`, or "
            "give the folder of the programs of another environment that has flwr"
        )
    return found


class Guarded:
    """A child process that ends with this one, even if this one is killed."""

    def __init__(self, command: Sequence[str], *, log: Path, env: Mapping[str, str]) -> None:
        """Start it.

        Args:
            command: Program and arguments.
            log: Gets what it prints.
            env: Environment variables beside those of this process.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, guard.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(command[0], **env),
                start_new_session=True,
            )

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._child.poll() is None

    def stop(self) -> None:
        """Stop it, and wait until it has ended."""
        assert self._child.stdin is not None
        if not self._child.stdin.closed:
            self._child.stdin.close()
        try:
            self._child.wait(15)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def __enter__(self) -> Guarded:
        """Return it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        self.stop()


def environment(program: str, **more: str) -> dict[str, str]:
    """Return the environment of a program of Flower, which finds the others beside it."""
    path = os.pathsep.join([str(Path(program).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, **_ENVIRONMENT, "PATH": path, **more}


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def local_address(host: str) -> str:
    """Return the address at which this machine reaches what listens on ``host``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def check_port(host: str, port: int) -> None:
    """Refuse an address that this process cannot listen on.

    Raises:
        ConfigurationError: If another program listens there, or this machine has no such address.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigurationError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror}); "
            "is another server running?"
        ) from error


def wait_for_port(host: str, port: int, child: Guarded, *, seconds: float, log: Path) -> None:
    """Wait until a child listens on a port of this machine.

    Raises:
        ConfigurationError: If it has ended, or does not listen in time; with its last words.
    """
    start = time.monotonic()
    while True:
        with suppress(OSError), socket.create_connection((host, port), timeout=1.0):
            return
        if not child.runs or time.monotonic() - start > seconds:
            words = log.read_text(encoding="utf-8", errors="replace")[-1500:]
            raise ConfigurationError(f"--port {port}: Flower did not start:\n{words}")
        time.sleep(0.1)
