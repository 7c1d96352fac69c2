"""The folder of a run, its files, and the versions that lie beside each other."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.csv_logs import CSVLogger
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from mlecs_lightning.callbacks.monitor import Monitor
from mlecs_lightning.checkpoints.checkpoint import CheckpointError, find_checkpoint
from mlecs_lightning.checkpoints.timeline import checkpoints
from mlecs_lightning.clients.federation import FederationModels
from mlecs_lightning.clients.ranks import Ranks
from mlecs_lightning.deploy.adapter import write_adapter
from mlecs_lightning.extras import MissingExtraError, Need, require
from mlecs_lightning.modules import MultimodalLM
from mlecs_lightning.modules.contents import Contents, content_header
from mlecs_lightning.report.command import rendered
from mlecs_lightning.storage.digests import forget_digest, record_digest, seal_folder, write_checked
from mlecs_lightning.storage.files import naming_full_disk, replacing_folder
from mlecs_lightning.storage.folders import claim_folder, numbered_folders
from mlecs_lightning.storage.yaml_text import dump_yaml

__all__ = ["RunFolder", "RunVersions"]

log = logging.getLogger(__name__)


class RunFolder:
    """``<root>/<name>/version_k``: all files that a run writes.

    A file that is written once is written as a whole, with its digest (`digests`); metrics.csv,
    which grows with every round, gets its digest when the run ends.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        *,
        version: str | None,
        logger: bool | list[Logger],
        writes: bool = True,
    ) -> None:
        """Claim a new version, or open an old one to continue.

        Args:
            root: `default_root_dir`.
            name: Name of the run.
            version: An existing version to continue; ``None`` claims the next one.
            logger: False for none, true for metrics.csv and TensorBoard, or the user's loggers.
            writes: Whether this process writes the files of which a run has one: log,
                configuration, summary, predictions.
        """
        self._writes = writes
        self._trackers = logger if isinstance(logger, list) and writes else []
        self._own_log = logger is True and writes
        self._root, self._name = root, name
        self._fresh = version is None
        versions = root / name
        self.path = claim_folder(versions, "version") if version is None else versions / version
        self.loggers: list[Logger] = []
        """The loggers of metrics; none before `start_log`."""

    def start_log(self) -> None:
        """Open the loggers with an empty log: a resumed run logs its history again."""
        self.loggers = [*self._trackers]
        if self._own_log:
            for events in self.path.glob("events.out.tfevents.*"):
                events.unlink()
            own: list[type[CSVLogger] | type[TensorBoardLogger]] = [CSVLogger]
            try:
                require(Need("a log for TensorBoard", "tensorboard"))
                own.append(TensorBoardLogger)
            except MissingExtraError as error:
                log.warning("the log is metrics.csv alone: %s", error)
            self.loggers = [kind(self._root, self._name, self.path.name) for kind in own]
            forget_digest(self._metrics)
        with warnings.catch_warnings():
            # The folder has other files than the log.
            warnings.filterwarnings("ignore", message="Experiment logs directory")
            for opened in self.loggers:
                getattr(opened, "experiment", None)

    def discard(self) -> None:
        """Remove the folder if it is new: the run was refused before it began."""
        if self._fresh and self._writes:
            shutil.rmtree(self.path)

    def close(self, status: Literal["success", "failed"]) -> None:
        """Flush and close every logger.

        Raises:
            FullDiskError: If the disk is full, unless the run has failed anyway.
        """
        # A second failure must not hide the first one.
        hidden = (
            contextlib.suppress(OSError, ValueError)
            if status == "failed"
            else contextlib.nullcontext()
        )
        with hidden, self._room():
            for logger in self.loggers:
                logger.finalize(status)
            if self.loggers and self._metrics.is_file():
                record_digest(self._metrics)

    def _room(self) -> contextlib.AbstractContextManager[None]:
        """Name the folder if loggers find the disk full; how much they need is not known."""
        return naming_full_disk(self._metrics, needed=lambda: 1)

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def client_log(self, client: str) -> Path:
        """Return the client's own log file, with the full text of its exceptions.

        In a simulation it is in the run folder. On a network it would stay on the device.
        """
        return self.path / "clients" / client / "errors.log"

    def note(self, client: str, text: str) -> None:
        """Append to the client's own log file; if that fails, only warn."""
        path = self.client_log(client)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError as error:
            log.warning("%s cannot be written: %s", path, error.strerror)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Log metrics with every logger, with the round as step.

        Raises:
            FullDiskError: If the disk is full.
        """
        with self._room():
            for logger in self.loggers:
                logger.log_metrics(dict(metrics), step=step)
                logger.save()

    def _write(self, name: str, text: str) -> None:
        if self._writes:
            write_checked(self.path / name, text)

    def write_config(self, config: Mapping[str, Any], *, frozen: Contents) -> None:
        """Write the configuration that reproduces the run, also to the user's loggers.

        Args:
            config: The configuration.
            frozen: Digests of the frozen models, for a comment in the file.
        """
        self._write("config.yaml", content_header(frozen) + dump_yaml(config))
        for logger in self._trackers:
            with contextlib.suppress(NotImplementedError):  # Fabric's CSVLogger has none
                logger.log_hyperparams(dict(config))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        self._write("summary.json", json.dumps(summary, indent=2) + "\n")

    def keep_artifacts(self) -> None:
        """Hand summary, report and adapters to MLflow or W&B, if the user logs there.

        A tracker that fails is warned about: the run folder has the files anyway.
        """
        trackers = [each for each in self._trackers if isinstance(each, MLFlowLogger | WandbLogger)]
        if not trackers:
            return
        kept = ["summary.json", "adapters"]
        try:
            (self.path / "report.html").write_text(rendered([self.path]), encoding="utf-8")
            kept.append("report.html")
        except MissingExtraError as error:
            log.warning("trackers get no report: %s", error)
        for tracker in trackers:
            try:
                for name in kept:
                    _keep(tracker, self.path / name)
            except Exception as error:  # whatever a tracker's package raises
                log.warning("%s does not take artifacts: %s", type(tracker).__name__, error)

    def write_predictions(self, rows: Iterable[Mapping[str, str]]) -> Path:
        """Write predictions.jsonl: one JSON object per line."""
        path = self.path / "predictions.jsonl"
        self._write(path.name, "".join(json.dumps(dict(row)) + "\n" for row in rows))
        return path

    def write_adapters(self, federation: FederationModels) -> None:
        """Write the adapters of this rank's clients and of the server's LLM in PEFT's format."""
        for client in federation.own:
            self._write_adapter(client, federation.edge(client).module)
        if federation.ranks.rank == 0:
            self._write_adapter("server", federation.server.module)

    def _write_adapter(self, party: str, module: MultimodalLM) -> None:
        """Write the folder of an adapter, with the digests of its files.

        For a sub-model, whose layers are cut, a file lists the modules that it has.
        """
        with replacing_folder(self.path / "adapters" / party, over=True) as folder:
            write_adapter(module, folder)
            if party != "server" and (form := module.form()):
                text = json.dumps(form) + "\n"
                (folder / "modules.json").write_text(text, encoding="utf-8")
            seal_folder(folder)


def _keep(tracker: MLFlowLogger | WandbLogger, path: Path) -> None:
    """Give a file or a folder to a tracker: as artifact of MLflow, as file of a run of W&B."""
    if isinstance(tracker, WandbLogger):
        pattern = f"{path}/**/*" if path.is_dir() else str(path)
        tracker.experiment.save(pattern, base_path=str(path.parent), policy="now")
    elif path.is_dir():
        tracker.experiment.log_artifacts(tracker.run_id, str(path), path.name)
    else:
        tracker.experiment.log_artifact(tracker.run_id, str(path))


@dataclass(frozen=True)
class RunVersions:
    """The folder ``<root>/<name>`` with all versions of a run.

    Attributes:
        root: `default_root_dir`.
        name: Name of the run.
        monitor: What ``best`` is asked to compare by; ``None`` for what the run has said.
    """

    root: Path
    name: str
    monitor: Monitor | None = None

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
        found = find_checkpoint(ckpt_path, run_root=self.path, monitor=self.monitor)
        path = found.resolve()
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
