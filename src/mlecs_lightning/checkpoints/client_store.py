"""Stores for the state of each client: its trainable tensors and its optimiser."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from mlecs_lightning.storage.files import (
    DamagedFileError,
    load_tensors,
    save_tensors,
    write_atomically,
)

__all__ = ["ClientStore", "DiskStore", "MemoryStore", "StoreKind", "client_files", "number_of"]

StoreKind = Literal["memory", "disk"]
_FILE = re.compile(r"(.+)@(-?\d+)\.pt")


def client_files(folder: Path) -> Iterator[tuple[str, int, Path]]:
    """Yield client, round and path of every file of a `DiskStore`, sorted by round."""
    for path in sorted(folder.glob("*.pt"), key=lambda path: number_of(path.name)):
        if match := _FILE.fullmatch(path.name):
            yield match[1], int(match[2]), path


def number_of(name: str) -> int:
    """Return the round in the file name of a `DiskStore`, or -2, before all, for other files."""
    match = _FILE.fullmatch(name)
    return int(match[2]) if match else -2


class ClientStore(Protocol):
    """Keeps the states of clients while other clients train.

    A store also keeps each client's message of the current round, so an interrupted round can
    resume with the remaining clients.
    """

    def get(self, client: str) -> dict[str, Any] | None:
        """Return the state of a client, or ``None`` if it has not trained yet."""

    def put(self, client: str, state: dict[str, Any], *, round: int) -> None:
        """Store the state of a client after a round."""

    def message(self, client: str) -> bytes:
        """Return the client's message of this round.

        Raises:
            DamagedFileError: If the file of the message is damaged or missing.
        """

    def put_message(self, client: str, data: bytes) -> None:
        """Store the client's message of this round."""

    def drop_messages(self) -> None:
        """Remove the messages at the end of the round."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each client, or the name of its file."""

    def prune(self, rounds: list[int]) -> None:
        """Remove states that the checkpoints of these rounds do not need."""


class _Messages:
    """The messages of a round, in memory or in files ``<client>.message``."""

    def __init__(self, folder: Path | None) -> None:
        """Use a folder, created if missing; without one, messages stay in memory."""
        self._messages: dict[str, bytes] = {}
        self._digests: dict[str, bytes] = {}
        self._spool = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def message(self, client: str) -> bytes:
        """See `ClientStore`."""
        if client not in self._digests:
            return self._messages[client]
        path = self._path(client)
        try:
            data = path.read_bytes()
        except OSError as error:
            reason = str(error)
        else:
            if hashlib.sha256(data).digest() == self._digests[client]:
                return data
            reason = "its SHA-256 is another than when it was written"
        raise DamagedFileError(
            f"client {client!r}: its message of the round under way, {str(path)!r}, is damaged: "
            f"{reason}; --ckpt_path last goes on from the last checkpoint"
        )

    def put_message(self, client: str, data: bytes) -> None:
        """See `ClientStore`."""
        if self._spool is None:
            self._messages[client] = data
            return
        # Only this process reads the file, so neither file nor digest must survive it.
        write_atomically(self._path(client), data, sync=False)
        self._digests[client] = hashlib.sha256(data).digest()

    def drop_messages(self) -> None:
        """See `ClientStore`."""
        for client in self._digests:
            self._path(client).unlink(missing_ok=True)
        self._messages.clear()
        self._digests.clear()

    def _path(self, client: str) -> Path:
        assert self._spool is not None
        return self._spool / f"{client}.message"


class MemoryStore(_Messages):
    """Keeps states in memory."""

    def __init__(self, messages: Path | None = None) -> None:
        """Start empty.

        Args:
            messages: Folder for the messages of a round; ``None`` keeps them in memory, too.
        """
        super().__init__(messages)
        self._states: dict[str, dict[str, Any]] = {}

    def get(self, client: str) -> dict[str, Any] | None:
        """See `ClientStore`."""
        return self._states.get(client)

    def put(self, client: str, state: dict[str, Any], *, round: int) -> None:
        """See `ClientStore`."""
        self._states[client] = state

    def state_dict(self) -> dict[str, Any]:
        """See `ClientStore`."""
        return dict(self._states)

    def prune(self, rounds: list[int]) -> None:
        """See `ClientStore`."""


class DiskStore(_Messages):
    """Keeps states in files ``<client>@<round>.pt``, so memory does not grow with the clients.

    A file is written once and never changed. The checkpoint of a round names these files instead of
    storing the states again.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder.

        Args:
            folder: Created if missing; ``checkpoints/clients`` of the run.
        """
        super().__init__(folder)
        self.folder = folder
        self._files: dict[str, str] = {}

    def get(self, client: str) -> dict[str, Any] | None:
        """See `ClientStore`."""
        if client not in self._files:
            return None
        state: dict[str, Any] = load_tensors(self.folder / self._files[client])
        return state

    def put(self, client: str, state: dict[str, Any], *, round: int) -> None:
        """See `ClientStore`."""
        name = f"{client}@{round:04d}.pt"
        save_tensors(self.folder / name, state)
        self._files[client] = name

    def state_dict(self) -> dict[str, Any]:
        """See `ClientStore`."""
        return dict(self._files)

    def prune(self, rounds: list[int]) -> None:
        """See `ClientStore`. A checkpoint needs each client's newest file up to its round."""
        written: dict[str, list[int]] = {}
        for client, number, _ in client_files(self.folder):
            if client in self._files:
                written.setdefault(client, []).append(number)
        for client, numbers in written.items():
            needed = {max((n for n in numbers if n <= r), default=-1) for r in rounds}
            for number in set(numbers) - needed:
                (self.folder / f"{client}@{number:04d}.pt").unlink(missing_ok=True)
