"""Loads an exported model and asks it questions."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlecs_lightning.data.decoding.preparation import Preparation
from mlecs_lightning.data.decoding.shapes import DecodeError
from mlecs_lightning.deploy.folder import (
    BACKBONE,
    CONFIG,
    FORMAT_VERSION,
    WEIGHTS,
    frozen_contents,
)
from mlecs_lightning.deploy.hub import exported_folder
from mlecs_lightning.errors import ConfigurationError, FaultList
from mlecs_lightning.modules import EdgeModule, MultimodalLM
from mlecs_lightning.modules.base import as_settings
from mlecs_lightning.modules.contents import REMEDY, content_faults
from mlecs_lightning.nn.extractors import (
    ImageCNN,
    PretrainedExtractor,
    SeriesCNN,
    TextCNN,
    VectorMLP,
)
from mlecs_lightning.settings import ModelSettings
from mlecs_lightning.storage.digests import check_folder, load_safetensors, read_checked
from mlecs_lightning.storage.files import DamagedFileError
from mlecs_lightning.storage.text_files import utf8
from mlecs_lightning.types import Batch

__all__ = ["ExportedModel", "load_exported"]

_EXTRACTORS: dict[str, type[nn.Module]] = {
    path: cls
    for cls in (ImageCNN, PretrainedExtractor, SeriesCNN, TextCNN, VectorMLP)
    for path in (
        cls.__name__,
        f"mlecs_lightning.nn.extractors.{cls.__name__}",
        f"{cls.__module__}.{cls.__name__}",
    )
}
"""The encoder classes, by all their names, that a folder may use without being trusted."""
_KEYS = {
    *("format_version", "versions", "backbone", "settings", "modalities", "instruction"),
    *("precision", "training"),
}
_LATER_KEYS = {"frozen"}  # missing in exports of earlier versions


class ExportedModel:
    """A trained model that answers questions about new inputs.

    Attributes:
        module: The model itself, in evaluation mode.
        preparations: How each input is read and scaled.
        instruction: The default instruction, that of training; ``None`` if there were several.
        config: The contents of ``mlecs_config.json``; of a model in memory, its instruction and
            precision alone.
    """

    def __init__(
        self, module: MultimodalLM, preparations: dict[str, Preparation], config: dict[str, Any]
    ) -> None:
        """Build from the parts, which `load_exported` reads from a folder."""
        self.module = module.eval()
        self.preparations = preparations
        self.instruction: str | None = config["instruction"]
        self.config = config

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the inputs that the model can take."""
        return self.module.modalities

    def ask(self, *, instruction: str | None = None, **inputs: object) -> str:
        """Ask about one sample.

        Args:
            instruction: The question; that of training by default.
            **inputs: For each modality a path, an array, a tensor or lists of numbers, see
                `Preparation.read`. A modality that is left out or ``None`` is absent.

        Returns:
            The generated sentence.

        Raises:
            ValueError: If there is no input, or an input is unknown or cannot be read; one message
                holds all faults.
            OSError: If a file cannot be opened.
        """
        return self.ask_batch([inputs], instruction=instruction)[0]

    def ask_batch(
        self,
        samples: Sequence[Mapping[str, object]],
        *,
        instruction: str | Sequence[str] | None = None,
        batch_size: int = 32,
    ) -> list[str]:
        """Ask about several samples.

        Args:
            samples: The inputs of N samples, as in `ask`.
            instruction: The question, one for all samples or one for each.
            batch_size: Number of samples per batch.

        Returns:
            N sentences.

        Raises:
            ValueError: As `ask`, or if the numbers of instructions and samples differ.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        asked = self._instructions(instruction, len(samples))
        self._check_names(samples)
        answers: list[str] = []
        for start in range(0, len(samples), batch_size):
            part = slice(start, start + batch_size)
            batch = self._batch(samples[part], asked[part], first=start)
            with torch.inference_mode(), self._arithmetic():
                rows = self.module.predict_step(batch)
            answers += [row["prediction"] for row in rows]
        return answers

    def _instructions(self, given: str | Sequence[str] | None, count: int) -> list[str]:
        if given is None and self.instruction is None:
            raise ValueError("instruction: the training data had several, so give one")
        if given is None or isinstance(given, str):
            return [given or str(self.instruction)] * count
        if len(given) != count:
            raise ValueError(f"instruction: expected one or {count}, got {len(given)}")
        return list(given)

    def _check_names(self, samples: Sequence[Mapping[str, object]]) -> None:
        faults = FaultList()
        for number, sample in enumerate(samples):
            if unknown := [name for name in sample if name not in self.modalities]:
                faults.append(
                    f"sample {number}: {unknown} are not among the model's inputs "
                    f"{list(self.modalities)}"
                )
            elif all(value is None for value in sample.values()):
                faults.append(f"sample {number}: give at least one of {list(self.modalities)}")
        faults.raise_any()

    def _batch(
        self, samples: Sequence[Mapping[str, object]], asked: Sequence[str], *, first: int
    ) -> Batch:
        specs, faults = self.module.specs, FaultList()
        inputs = {name: torch.zeros(len(samples), *spec.shape) for name, spec in specs.items()}
        present = torch.zeros(len(samples), len(specs), dtype=torch.bool)
        for row, sample in enumerate(samples):
            for column, name in enumerate(specs):
                if sample.get(name) is None:
                    continue
                try:
                    inputs[name][row] = self.preparations[name].read(sample[name])
                except DecodeError as error:
                    faults.append(f"sample {first + row}, {name}: {error}")
                present[row, column] = True
        faults.raise_any()
        device = self.module.device
        return Batch(
            ids=tuple(str(first + row) for row in range(len(samples))),
            modalities=tuple(specs),
            inputs={name: values.to(device) for name, values in inputs.items()},
            present=present.to(device),
            instructions=tuple(asked),
            targets=("",) * len(samples),
        )

    def _arithmetic(self) -> AbstractContextManager[Any]:
        """Return a context with the mixed precision of training, for the same answers as there."""
        kind = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(
            self.config["precision"]
        )
        return torch.autocast(self.module.device.type, dtype=kind, enabled=kind is not None)


def load_exported(
    folder: str | Path,
    *,
    revision: str | None = None,
    backbone: str | Path | None = None,
    device: str | torch.device = "cpu",
    trust_extractors: bool = False,
) -> ExportedModel:
    """Load a model from a folder that ``export`` wrote, or that ``push`` uploaded to the hub.

    Args:
        folder: The folder, or ``user/name`` on the hub where there is no such folder.
        revision: Branch, tag or commit on the hub; the newest of the branch main by default.
        backbone: Directory or hub id of the language model, if it is not where the folder says.
        device: The device of the model.
        trust_extractors: Whether encoders may be classes of other packages. The folder names the
            classes that are imported and called, so set this only for folders that you trust.

    Returns:
        The model; ``model.ask(...)`` asks it.

    Raises:
        ConfigurationError: If the download fails, ``export`` did not write the folder, its version
            is unknown, a file does not fit, or the language model cannot be loaded or is not the
            one that the model was trained with.
        DamagedFileError: If a file has changed since ``export`` wrote it.

    Example:
        >>> from mlecs_lightning import load_exported  # doctest: +SKIP
        >>> model = load_exported("kitchen")  # doctest: +SKIP
        >>> model.ask(acc="window.csv")  # doctest: +SKIP
    """
    folder = exported_folder(folder, revision=revision)
    config = _read_config(folder / CONFIG)
    settings = as_settings(config["settings"])
    if backbone is not None:
        named = replace(settings.backbone, model=str(backbone), revision=None)
        settings = replace(settings, backbone=replace(named, local_files_only=False))
    elif config["backbone"]["source"] == "included":
        check_folder(folder, below=f"{BACKBONE}/")
        path = str((folder / BACKBONE).resolve())
        settings = replace(settings, backbone=replace(settings.backbone, model=path))
    if not trust_extractors:
        _check_extractors(settings)
        settings = _without_training(settings)
    preparations = {
        name: Preparation.from_dict(values, key=f"{folder / CONFIG}: modalities.{name}")
        for name, values in config["modalities"].items()
    }
    module = EdgeModule(settings, {n: p.declared.spec for n, p in preparations.items()})
    names = ("in the folder", "here")
    if faults := content_faults(config.get("frozen", {}), frozen_contents(module), names=names):
        title = f"{str(folder)!r} was exported with other frozen models:"
        raise ConfigurationError("\n  ".join([title, *faults, REMEDY]))
    try:
        module.load_trainable_state(_read_state(folder, tower=module.first))
    except DamagedFileError:
        raise
    except (OSError, KeyError, ValueError) as error:
        raise ConfigurationError(f"{str(folder)!r}: the weights do not fit: {error}") from error
    return ExportedModel(_placed(module, torch.device(device)), preparations, config)


def _placed(module: EdgeModule, device: torch.device) -> EdgeModule:
    """Move a model to a device. Frozen weights are copied there, since other models share them."""
    device = torch.empty(0, device=device).device  # with its number
    copies: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for part in module.modules():
        for name, held in part._parameters.items():
            # Not the subclasses of quantised weights, which hold more than numbers.
            if type(held) is nn.Parameter and not held.requires_grad and held.device != device:
                if id(held) not in copies:
                    copies[id(held)] = nn.Parameter(held.to(device), requires_grad=False)
                part._parameters[name] = copies[id(held)]
    return module.to(device)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(utf8(read_checked(path)))
        found = config["format_version"]
    except DamagedFileError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{str(path.parent)!r} is not a folder that `export` wrote: {path.name}: {error}"
        ) from error
    if found != FORMAT_VERSION:
        raise ConfigurationError(
            f"{str(path)!r} has format_version {found}, but this version of mlecs_lightning reads "
            f"only {FORMAT_VERSION}"
        )
    if config.keys() - _LATER_KEYS != _KEYS:
        raise ConfigurationError(
            f"{str(path)!r}: unknown keys {sorted(config.keys() - _KEYS - _LATER_KEYS)}, missing "
            f"keys {sorted(_KEYS - config.keys())}"
        )
    return config


def _check_extractors(settings: ModelSettings) -> None:
    """Refuse encoders of other packages, since a folder could name any class to be called.

    Names are checked before anything is imported, because importing a module runs it.

    Raises:
        ConfigurationError: If an encoder is of another package, or has unknown arguments.
    """
    for modality, setting in settings.extractors.items():
        key, path = f"extractors.{modality}", setting["class_path"]
        cls = _EXTRACTORS.get(path)
        if cls is None:
            raise ConfigurationError(
                f"{key}: the class {path!r} is not one of this package's {sorted(_EXTRACTORS)}; "
                "if you trust it, use load_exported(..., trust_extractors=True)"
            )
        known = [name for name in inspect.signature(cls).parameters if name != "spec"]
        if unknown := sorted((setting.get("init_args") or {}).keys() - set(known)):
            raise ConfigurationError(
                f"{key}: {path} has no arguments {unknown}; its arguments are {known}"
            )


def _without_training(settings: ModelSettings) -> ModelSettings:
    """Remove optimiser and scheduler, so that the folder cannot make their classes be called."""
    return replace(settings, optimizer=ModelSettings().optimizer, lr_scheduler=None)


def _read_state(folder: Path, *, tower: str) -> dict[str, torch.Tensor]:
    """Return the tensors of both files under their names in the module."""
    own = load_safetensors(folder / WEIGHTS)
    adapter = load_safetensors(folder / "adapter_model.safetensors")
    return {
        name if name.startswith("extractors.") else f"towers.{tower}.{name}": tensor
        for name, tensor in own.items()
    } | {
        f"towers.{tower}.backbone.lm.{name.removesuffix('.weight')}.default.weight": tensor
        for name, tensor in adapter.items()
    }
