"""The run folder: loggers, summary, adapters, predictions."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.csv_logs import CSVLogger
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger

from mlecs_lightning.clients.federation import Federation
from mlecs_lightning.deploy.adapter import write_adapter
from mlecs_lightning.modules import MultimodalLM
from mlecs_lightning.modules.contents import Contents, content_header
from mlecs_lightning.storage.digests import forget_digest, record_digest, seal_folder, write_checked
from mlecs_lightning.storage.files import naming_full_disk, replacing_folder
from mlecs_lightning.storage.folders import claim_folder
from mlecs_lightning.storage.yaml_text import dump_yaml

__all__ = ["RunFolder"]

log = logging.getLogger(__name__)


class RunFolder:
    """``<root>/<name>/version_k``: everything that a run leaves behind.

    What is written once is written whole, with its digest (`digests`); metrics.csv, which grows
    with every round, gets its own when the run ends.
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
        """Claim a new version, or take an old one to go on in.

        Args:
            root: `default_root_dir`.
            name: Name of the run.
            version: An existing version to go on in; ``None`` claims the next one.
            logger: False for none, true for metrics.csv and TensorBoard, or loggers of your own.
            writes: Whether this process writes what is there once in a run: log, configuration,
                summary, predictions.
        """
        self._writes = writes
        self._trackers = logger if isinstance(logger, list) and writes else []
        self._own_log = logger is True and writes
        self._root, self._name = root, name
        self._fresh = version is None
        versions = root / name
        self.path = claim_folder(versions, "version") if version is None else versions / version
        self.loggers: list[Logger] = []
        """Who is told of metrics; none before `start_log`."""

    def start_log(self) -> None:
        """Open the loggers: an empty log, since a run that goes on writes that of its history."""
        self.loggers = [*self._trackers]
        if self._own_log:
            for events in self.path.glob("events.out.tfevents.*"):
                events.unlink()
            own = (CSVLogger, TensorBoardLogger)
            self.loggers = [kind(self._root, self._name, self.path.name) for kind in own]
            forget_digest(self._metrics)
        with warnings.catch_warnings():
            # The folder holds other things than the log.
            warnings.filterwarnings("ignore", message="Experiment logs directory")
            for opened in self.loggers:
                getattr(opened, "experiment", None)

    def discard(self) -> None:
        """Remove the folder again, if it is a new one: the run was refused before it began."""
        if self._fresh and self._writes:
            shutil.rmtree(self.path)

    def close(self, status: Literal["success", "failed"]) -> None:
        """Let every logger write what it has kept back, and end its record.

        Raises:
            FullDiskError: If there is no room for that, unless the run has failed anyway.
        """
        # After a failure another one must not hide what it was.
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
        """Name the folder where loggers find the disk full; how much they want is not known."""
        return naming_full_disk(self._metrics, needed=lambda: 1)

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def client_log(self, client: str) -> Path:
        """Return the file of a client's own, with all that its exceptions say.

        In a simulation it lies here; on a network it would on the device, and be nobody else's.
        """
        return self.path / "clients" / client / "errors.log"

    def note(self, client: str, text: str) -> None:
        """Append to the client's own file; a run does not end because that cannot be written."""
        path = self.client_log(client)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError as error:
            log.warning("%s cannot be written: %s", path, error.strerror)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Hand metrics to every logger, with the round as step.

        Raises:
            FullDiskError: If there is no room for them.
        """
        with self._room():
            for logger in self.loggers:
                logger.log_metrics(dict(metrics), step=step)
                logger.save()

    def _write(self, name: str, text: str) -> None:
        if self._writes:
            write_checked(self.path / name, text)

    def write_config(self, config: Mapping[str, Any], *, frozen: Contents) -> None:
        """Write the configuration that reproduces the run; the user's own loggers get it, too.

        Args:
            config: The configuration.
            frozen: What the models that it names hold: a comment of the file.
        """
        self._write("config.yaml", content_header(frozen) + dump_yaml(config))
        for logger in self._trackers:
            with contextlib.suppress(NotImplementedError):  # Fabric's CSVLogger has none
                logger.log_hyperparams(dict(config))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        self._write("summary.json", json.dumps(summary, indent=2) + "\n")

    def write_predictions(self, rows: Iterable[Mapping[str, str]]) -> Path:
        """Write predictions.jsonl: one JSON object a line."""
        path = self.path / "predictions.jsonl"
        self._write(path.name, "".join(json.dumps(dict(row)) + "\n" for row in rows))
        return path

    def write_adapters(self, federation: Federation) -> None:
        """Write the adapters of own clients, and that of the server's LLM, in PEFT's format."""
        for client in federation.own:
            self._write_adapter(client, federation.edge(client).module)
        if federation.ranks.rank == 0:
            self._write_adapter("server", federation.server.module)

    def _write_adapter(self, party: str, module: MultimodalLM) -> None:
        """Write a folder that travels: its digests are in it.

        Beside the adapter of a sub-model, whose layers are cut, it says which modules that has.
        """
        with replacing_folder(self.path / "adapters" / party, over=True) as folder:
            write_adapter(module, folder)
            if party != "server" and (form := module.form()):
                text = json.dumps(form) + "\n"
                (folder / "modules.json").write_text(text, encoding="utf-8")
            seal_folder(folder)
