"""Runs the programs that `write_programs` has written: greedy decoding without the model's code."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlecs_lightning.data.decoding.preparation import Preparation
from mlecs_lightning.data.decoding.shapes import DecodeError
from mlecs_lightning.deploy.programs import DEVICE_CONFIG, ENDINGS, PROGRAMS_VERSION
from mlecs_lightning.errors import ConfigurationError, FaultList
from mlecs_lightning.extras import Need, require
from mlecs_lightning.nn.texts import TextCoder
from mlecs_lightning.storage.digests import check_folder, read_checked
from mlecs_lightning.storage.paths import expanded
from mlecs_lightning.storage.text_files import utf8

__all__ = ["DeviceModel", "load_device_model"]

Program = Callable[[Sequence[Tensor]], list[Tensor]]
"""Takes and returns tensors in the order of the program's inputs and outputs."""


class DeviceModel:
    """An exported model that answers one question at a time, by torch.export or ONNX programs.

    Attributes:
        preparations: How each input is read and scaled.
        config: The contents of ``mlecs_device.json``.
    """

    def __init__(
        self, prefill: Program, step: Program, coder: TextCoder, config: dict[str, Any]
    ) -> None:
        """Build from the parts, which `load_device_model` reads from a folder."""
        self._prefill, self._step, self._coder = prefill, step, coder
        self.preparations = {
            name: Preparation.from_dict(values, key=f"{DEVICE_CONFIG}: modalities.{name}")
            for name, values in config["modalities"].items()
        }
        self.config = config

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the inputs that the model can take."""
        return tuple(self.preparations)

    def ask(self, *, instruction: str | None = None, **inputs: object) -> str:
        """Ask about one sample, as `ExportedModel.ask`.

        Args:
            instruction: The question; that of training by default.
            **inputs: For each modality a path, an array, a tensor or lists of numbers. A modality
                that is left out or ``None`` is absent.

        Returns:
            The generated sentence.

        Raises:
            ValueError: If there is no input, an input is unknown or cannot be read, or the
                instruction is empty or too long.
        """
        tokens, _ = self.decode(instruction=instruction, **inputs)
        return self._coder.decode([tokens])[0]

    def decode(
        self, *, instruction: str | None = None, **inputs: object
    ) -> tuple[list[int], Tensor]:
        """Return the tokens of the answer, and the logits (T, vocabulary) they were chosen by."""
        asked = self._tokens(instruction)
        values, present = self._read(inputs)
        logits, *cache = self._prefill([*values, present, asked])
        tokens, rows = [int(logits.argmax())], [logits]
        while tokens[-1] != self.config["end"] and len(tokens) < self.config["max_new_tokens"]:
            logits, *cache = self._step([torch.tensor([[tokens[-1]]]), *cache])
            tokens.append(int(logits.argmax()))
            rows.append(logits)
        return tokens, torch.cat(rows)

    def _tokens(self, instruction: str | None) -> Tensor:
        question = self.config["instruction"] if instruction is None else instruction
        if question is None:
            raise ValueError("instruction: the training data had several, so give one")
        tokens = self._coder.encode(question)
        if not tokens:
            raise ValueError("instruction: it is empty, and the programs need at least one token")
        needed = self.config["before"] + len(tokens) + self.config["max_new_tokens"]
        if self._coder.positions is not None and needed > self._coder.positions:
            raise ValueError(
                f"instruction: with max_new_tokens it needs {needed} positions, and the language "
                f"model has {self._coder.positions}: shorten it"
            )
        return torch.tensor([tokens])

    def _read(self, inputs: dict[str, object]) -> tuple[list[Tensor], Tensor]:
        """Return (1, ...) of each modality, zeros where it is absent, and presence (1, K)."""
        given = {name: value for name, value in inputs.items() if value is not None}
        faults = FaultList()
        if unknown := sorted(inputs.keys() - set(self.modalities)):
            faults.append(f"{unknown} are not among the model's inputs {list(self.modalities)}")
        elif not given:
            faults.append(f"give at least one of {list(self.modalities)}")
        values = []
        for name, preparation in self.preparations.items():
            value = torch.zeros(preparation.declared.spec.shape)
            try:
                if name in given:
                    value = preparation.read(given[name])
            except DecodeError as error:
                faults.append(f"{name}: {error}")
            values.append(value.float().unsqueeze(0))
        faults.raise_any()
        return values, torch.tensor([[name in given for name in self.modalities]])


def load_device_model(folder: str | Path) -> DeviceModel:
    """Load a model that ``export --format torch`` or ``--format onnx`` wrote.

    Args:
        folder: The folder.

    Raises:
        ConfigurationError: If ``export`` did not write the folder with such a format, its version
            is unknown, or onnxruntime is missing.
        DamagedFileError: If a file has changed since ``export`` wrote it.

    Example:
        >>> from mlecs_lightning import load_device_model  # doctest: +SKIP
        >>> load_device_model("kitchen-onnx").ask(acc="window.csv")  # doctest: +SKIP
    """
    from transformers import AutoTokenizer

    folder = expanded(folder)
    config = _config(folder)
    check_folder(folder)
    load = _onnx_program if config["format"] == "onnx" else _torch_program
    ending = ENDINGS[config["format"]]
    prefill, step = (load(folder / f"{name}{ending}") for name in ("prefill", "step"))
    coder = TextCoder(
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        embedded=config["vocabulary"],
        positions=config["positions"],
        model=config["model"],
    )
    return DeviceModel(prefill, step, coder, config)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(utf8(read_checked(folder / DEVICE_CONFIG)))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{str(folder)!r} holds no {DEVICE_CONFIG}: `export --format torch` or `--format onnx` "
            "writes such a folder; load_exported reads those without --format"
        ) from error
    if config.get("format_version") != PROGRAMS_VERSION:
        raise ConfigurationError(
            f"{str(folder)!r} has format_version {config.get('format_version')}, but this version "
            f"of mlecs_lightning reads only {PROGRAMS_VERSION}"
        )
    return config


def _torch_program(path: Path) -> Program:
    module = torch.export.load(path).module()

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        *values, present, tokens = inputs
        with torch.inference_mode():
            # The inputs of `step` stand in no list.
            if path.stem == "prefill":
                return list(module(list(values), present, tokens))
            return list(module(*inputs))

    return run


def _onnx_program(path: Path) -> Program:
    require(Need(repr(str(path)), "onnx", ("onnxruntime",)))
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        arrays = {name: np.asarray(x) for name, x in zip(names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, arrays)]

    return run
