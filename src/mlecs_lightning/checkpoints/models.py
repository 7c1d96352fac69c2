"""The models of a checkpoint, rebuilt without data or configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlecs_lightning.checkpoints.checkpoint import CheckpointError, client_state, load_checkpoint
from mlecs_lightning.checkpoints.frozen import check_saved
from mlecs_lightning.data.decoding.preparation import Preparation
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.modules import EdgeModule, MultimodalLM, ServerModule
from mlecs_lightning.modules.base import as_settings
from mlecs_lightning.modules.pocket import pocket_of
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.settings import ModelSettings, cache_dir

__all__ = ["CheckpointModels"]


class CheckpointModels:
    """The models of all parties in a checkpoint.

    Attributes:
        path: The checkpoint.
        state: Its whole content.
        about: Algorithm, data set, seed, precision and instruction of the training.
        clients: The names of all clients.
        trained: The clients that have a state.
        preparations: Preprocessing of the inputs.
    """

    def __init__(
        self,
        path: Path,
        algorithm: Algorithm | None = None,
        *,
        any_frozen: bool = False,
        state: dict[str, Any] | None = None,
    ) -> None:
        """Read a checkpoint.

        Args:
            path: The checkpoint.
            algorithm: Adds its parts to the models, as in training; needed only if it has such
                parts.
            any_frozen: Only report a frozen model that differs from that of the training.
            state: Its content, for a checkpoint that was never written to a file.

        Raises:
            CheckpointError: If it is missing, unreadable, or does not describe its models.
        """
        self._algorithm = algorithm
        self.path, self.state = path, load_checkpoint(path) if state is None else state
        if "about" not in self.state:
            raise CheckpointError(
                f"ckpt_path: {str(path)!r} is of an earlier version, and does not say how its "
                "models are built; one more round of `fit` writes a checkpoint that does"
            )
        self.about: Mapping[str, Any] = self.state["about"]
        self._models: Mapping[str, Any] = self.about["models"]
        self.clients = tuple(self._models["clients"])
        self.trained = tuple(c for c in self.clients if c in self.state["clients"])
        self.preparations = {
            name: Preparation.from_dict(values, key=f"{path.name}: inputs.{name}")
            for name, values in self.about["inputs"].items()
        }
        self._any_frozen = any_frozen
        self._built: tuple[int, EdgeModule] | None = None

    def edge(self, client: str, *, fresh: bool = False) -> EdgeModule:
        """Return the model of a client with its state loaded.

        Args:
            client: The client's name.
            fresh: Whether to build a module of its own. By default clients of one architecture
                share one: the next call may change the returned module.

        Raises:
            ConfigurationError: If there is no such client, or its model has parts of an algorithm
                and none was given.
            CheckpointError: If it has not trained, its state is missing or does not fit, or its
                frozen model differs from that of the training.
        """
        if client not in self.clients:
            raise ConfigurationError(
                f"client {client!r} is none of {list(self.clients)} (or server) of {self.path}"
            )
        if client not in self.trained:
            raise CheckpointError(f"client {client!r} has not trained yet in {self.path}")
        # Checkpoints of earlier versions say it of all models at once.
        self._check_parts("adds_edge_parts" if "adds_edge_parts" in self.about else "adds_parts")
        number = int(self._models["clients"][client])
        if fresh or self._built is None or self._built[0] != number:
            built = self._models["architectures"][number]
            proxy = built.get("proxy")
            module = EdgeModule(
                _found(built["settings"]), built["modalities"], proxy=proxy and _found(proxy)
            )
            if self._algorithm is not None:
                self._algorithm.build_edge(module, self.about["inputs"])
            first = next(c for c in self.clients if self._models["clients"][c] == number)
            self._check(f"clients.{first}", module)
            self._built = number, module
        module = self._built[1]
        try:
            saved = client_state(self.state["clients"][client], self.path)
            module.load_trainable_state(saved["model"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"client {client!r} of {self.path}: {error}") from error
        return module

    def server(self) -> ServerModule:
        """Return the server's model with its state loaded.

        Raises:
            ConfigurationError: If it has parts of an algorithm and none was given.
            CheckpointError: If the state does not fit, or a frozen model differs from that of the
                training.
        """
        self._check_parts("adds_parts")
        built = dict(self._models["server"])
        module = ServerModule(
            _found(built["settings"]),
            _found(built["hosted"]),
            built["modalities"],
            further={host: _found(values) for host, values in built.get("further", {}).items()},
        )
        if self._algorithm is not None:
            self._algorithm.build_server(module, self.clients)
        self._check("server", module)
        try:
            module.load_trainable_state(self.state["server"]["model"])
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"server of {self.path}: {error}") from error
        return module

    def _check_parts(self, key: str) -> None:
        if self.about[key] and self._algorithm is None:
            raise ConfigurationError(
                f"{self.about['algorithm']} adds parts of its own to the models of "
                f"{str(self.path)!r}: they are no backbone with an adapter, and cannot be "
                "exported; predict asks them"
            )

    def _check(self, party: str, module: MultimodalLM) -> None:
        here = {f"{party}.{part}": c for part, c in module.frozen_contents().items()}
        check_saved(self.about, here, path=self.path, any=self._any_frozen)


def _found(values: Mapping[str, Any]) -> ModelSettings:
    """Return the settings with the local path of their pocket model.

    Raises:
        CheckpointError: If this machine does not have the model.
    """
    settings = as_settings(values)
    directory = Path(settings.backbone.model)
    name = pocket_of(str(directory))
    if name is None or directory.is_dir():
        return settings
    here = cache_dir() / "pocket" / directory.name
    if not here.is_dir():
        raise CheckpointError(
            f"backbone {name}: there is no {str(here)!r} on this machine; `test` with the "
            "configuration and the data of the run makes it again"
        )
    return replace(settings, backbone=replace(settings.backbone, model=str(here)))
