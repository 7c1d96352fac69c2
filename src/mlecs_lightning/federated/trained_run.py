"""What a run leaves to Python: its scores, its history, and its models to ask."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mlecs_lightning.checkpoints.models import CheckpointModels
from mlecs_lightning.checkpoints.timeline import Checkpoint, checkpoints
from mlecs_lightning.deploy import ExportedModel
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.federated.run import Run
from mlecs_lightning.modules import MultimodalLM
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.storage.digests import read_checked
from mlecs_lightning.storage.paths import expanded
from mlecs_lightning.storage.text_files import utf8

__all__ = ["Results", "TrainedRun", "load_run"]


class TrainedRun:
    """A run that has trained.

    Attributes:
        path: The run folder.
        summary: The scores, bytes and failures, as in ``summary.json``.
    """

    def __init__(
        self,
        path: Path,
        summary: Mapping[str, Any],
        *,
        checkpoint: Path,
        algorithm: Algorithm | None,
        state: dict[str, Any] | None = None,
    ) -> None:
        """Refer to a run.

        Args:
            path: The run folder.
            summary: Its summary.
            checkpoint: Its newest checkpoint, which is read when a model or the history is needed.
            algorithm: See `load_run`.
            state: The content of the checkpoint, for a run that has written none.
        """
        self.path, self.summary = path, dict(summary)
        self._checkpoint, self._algorithm, self._state = checkpoint, algorithm, state

    @cached_property
    def _saved(self) -> CheckpointModels:
        return CheckpointModels(self._checkpoint, self._algorithm, state=self._state)

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The metrics of each round, as in ``metrics.csv``; ``round`` counts from 0."""
        return [dict(row) for row in self._saved.state["history"]]

    @property
    def clients(self) -> tuple[str, ...]:
        """The names of all clients."""
        return self._saved.clients

    @property
    def server(self) -> ExportedModel:
        """The server's model, a new copy."""
        return self._model(self._saved.server())

    def client(self, name: str) -> ExportedModel:
        """Return a client's model, a new copy: ``run.client("kitchen").ask(...)`` asks it.

        Raises:
            ConfigurationError: If there is no such client; names those there are.
            CheckpointError: If the client has not trained yet, or its state is damaged.
        """
        return self._model(self._saved.edge(name, fresh=True))

    def _model(self, module: MultimodalLM) -> ExportedModel:
        saved = self._saved
        config = {key: saved.about[key] for key in ("instruction", "precision")}
        inputs = {name: saved.preparations[name] for name in module.modalities}
        # A backbone is shared with the models of the training, which may be on a GPU.
        device = module.tower().backbone.lm.device
        return ExportedModel(module.to(device), inputs, config)


class Results:
    """The results of a trainer's last `fit`; each raises a `RuntimeError` before it."""

    _trained: TrainedRun | None = None

    def _keep(self, run: Run, summary: Mapping[str, Any], *, saved: bool) -> None:
        """Keep what a run leaves; all of it in memory if it has not saved a checkpoint."""
        last = Checkpoint.named(run.folder.checkpoints, round=run.last_round, complete=True)
        state = None if saved else {**run.state_dict(), "clients": run.client_states()}
        self._trained = TrainedRun(
            run.folder.path, summary, checkpoint=last.path, algorithm=run.algorithm, state=state
        )

    @property
    def trained(self) -> TrainedRun:
        """The last run of `fit`."""
        if self._trained is None:
            raise RuntimeError("this trainer has no results yet: call fit first, or load_run(path)")
        return self._trained

    @property
    def summary(self) -> dict[str, Any]:
        """The scores, bytes and failures, as in ``summary.json``."""
        return self.trained.summary

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The metrics of each round, as in ``metrics.csv``; ``round`` counts from 0."""
        return self.trained.metrics

    @property
    def server(self) -> ExportedModel:
        """The server's model: ``trainer.server.ask(...)`` asks it."""
        return self.trained.server

    def client(self, name: str) -> ExportedModel:
        """Return a client's model: ``trainer.client("kitchen").ask(...)`` asks it.

        Raises:
            ConfigurationError: If there is no such client; names those there are.
            CheckpointError: If the client has not trained yet.
        """
        return self.trained.client(name)


def load_run(path: str | Path, *, algorithm: Algorithm | None = None) -> TrainedRun:
    """Load a run that `fit` has finished, from its folder.

    Args:
        path: The run folder, ``runs/NAME/version_k``.
        algorithm: The method, with the arguments of the training. Only methods that add parts to
            the models need it (ECLM and CD-CCA), and only for the models.

    Raises:
        ConfigurationError: If this is no run folder, or the run has not ended.
        DamagedFileError: If ``summary.json`` has changed since the run wrote it.

    Example:
        >>> from mlecs_lightning import load_run  # doctest: +SKIP
        >>> run = load_run("runs/quickstart/version_0")  # doctest: +SKIP
        >>> run.summary["mean"], run.metrics[-1].get("clients/val/loss")  # doctest: +SKIP
    """
    folder = expanded(path, key="load_run")
    whole = [each for each in checkpoints(folder / "checkpoints") if each.complete]
    if not whole:
        raise ConfigurationError(
            f"load_run: {str(folder)!r} has no checkpoint of a whole round; expected a run folder, "
            "such as runs/NAME/version_0"
        )
    rounds, ending = whole[-1].round + 1, "fit with --ckpt_path last ends it"
    try:
        summary = json.loads(utf8(read_checked(folder / "summary.json")))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"load_run: the run {str(folder)!r} has no summary.json, so it has not ended; {ending}"
        ) from error
    if summary["rounds"] != rounds:
        raise ConfigurationError(
            f"load_run: the summary.json of {str(folder)!r} is of {summary['rounds']} rounds and "
            f"its newest checkpoint of {rounds}: the run has gone on and has not ended; {ending}"
        )
    return TrainedRun(folder, summary, checkpoint=whole[-1].path, algorithm=algorithm)
