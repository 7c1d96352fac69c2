"""The versions of a run: where they lie, and which one a resumed run continues."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning.fabric.loggers.logger import Logger

from mlecs_lightning.checkpoints.checkpoint import CheckpointError, find_checkpoint
from mlecs_lightning.checkpoints.timeline import checkpoints
from mlecs_lightning.clients.ranks import Ranks
from mlecs_lightning.federated.run_folder import RunFolder
from mlecs_lightning.storage.folders import numbered_folders

__all__ = ["RunVersions"]


@dataclass(frozen=True)
class RunVersions:
    """The folder ``<root>/<name>`` with all versions of a run.

    Attributes:
        root: `default_root_dir`.
        name: Name of the run.
    """

    root: Path
    name: str

    @property
    def path(self) -> Path:
        """The folder itself."""
        return self.root / self.name

    def find(self, ckpt_path: str | None) -> tuple[Path, str | None]:
        """Return a checkpoint, and the version that a resumed run continues.

        The version is ``None`` if the checkpoint lies elsewhere: in another folder, under another
        name, or set aside.

        Args:
            ckpt_path: ``last``, ``best`` or a file.

        Raises:
            CheckpointError: If there is none.
        """
        if ckpt_path is None:
            raise CheckpointError("ckpt_path: give last, best or a checkpoint file")
        path = find_checkpoint(ckpt_path, run_root=self.path).resolve()
        for version in numbered_folders(self.path, "version"):
            folder = version / "checkpoints"
            names = {each.path.name for each in checkpoints(folder)}
            if path.parent == folder.resolve() and path.name in names:
                return path, version.name
        return path, None

    def open(self, ranks: Ranks, *, version: str | None, logger: bool | list[Logger]) -> RunFolder:
        """Open the folder of a run on all ranks.

        The first rank claims the version; the others write only the files of their clients.

        Args:
            ranks: All processes.
            version: An existing version to continue; ``None`` claims the next one.
            logger: As in `RunFolder`.
        """
        opened = (
            None if ranks.rank else RunFolder(self.root, self.name, version=version, logger=logger)
        )
        version = ranks.gather(opened.path.name if opened else "")[0]
        return opened or RunFolder(
            self.root, self.name, version=version, logger=False, writes=False
        )
