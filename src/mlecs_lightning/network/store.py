"""The states of a device, on its own disk."""

from __future__ import annotations

from pathlib import Path

from mlecs_lightning.checkpoints.client_store import DiskStore, client_files

__all__ = ["DeviceStore"]


class DeviceStore(DiskStore):
    """A `DiskStore` of one client that finds its files again, and can go back to an earlier round.

    The server says which round was the last that both ends have ended. A device that has trained
    further, because its reply was lost or the server has gone back, takes up that round's state.
    """

    def __init__(self, folder: Path, client: str) -> None:
        """Open the folder.

        Args:
            folder: Made if missing.
            client: The client.
        """
        super().__init__(folder)
        self._client = client

    @property
    def rounds(self) -> list[int]:
        """The rounds whose states are at hand, ascending."""
        return [r for name, r, _ in client_files(self.folder) if name == self._client]

    def go_back(self, round: int | None) -> bool:
        """Take up the state of a round, or start from nothing; return whether that is possible."""
        if round is None:
            self._files.pop(self._client, None)
            return True
        if round not in self.rounds:
            return False
        self._files[self._client] = f"{self._client}@{round:04d}.pt"
        return True

    def forget(self, before: int) -> None:
        """Delete the states of rounds before the given one."""
        for name, round, path in client_files(self.folder):
            if name == self._client and round < before:
                path.unlink(missing_ok=True)
