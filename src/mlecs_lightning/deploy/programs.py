"""Programs of an exported model for devices, in torch.export's format or as ONNX.

Two programs with weights inside compute what `ExportedModel.ask` computes, without Python code of
the model. ``prefill`` reads the inputs and the instruction, ``step`` reads one token more. Between
the calls the caller keeps the keys and values of the attention layers.

=================== ================================================================================
file                contents
=================== ================================================================================
``prefill.*``       (inputs of each modality (1, ...) float32, present (1, K) bool, tokens (1, L)
                    int64) to (logits (1, vocabulary), keys, values), each of the latter
                    (layers, 1, heads, positions, width)
``step.*``          (token (1, 1) int64, keys, values) to (logits, keys, values)
``tokenizer/``      the tokenizer of the language model
``mlecs_device.json`` order and preparation of the inputs, instruction, special tokens, limits
``SHA256SUMS``      digests of all files
=================== ================================================================================

The files end with ``.pt2`` or ``.onnx``.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mlecs_lightning.data.decoding.preparation import Preparation
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.extras import Need, require
from mlecs_lightning.modules import MultimodalLM
from mlecs_lightning.nn.connector import Connector
from mlecs_lightning.nn.embeddings import as_embeddings
from mlecs_lightning.nn.extractors import PretrainedExtractor
from mlecs_lightning.storage.digests import seal_folder
from mlecs_lightning.storage.files import replacing_folder

__all__ = ["DEVICE_CONFIG", "ENDINGS", "PROGRAMS_VERSION", "ProgramFormat", "write_programs"]

ProgramFormat = Literal["torch", "onnx"]

DEVICE_CONFIG, PROGRAMS_VERSION = "mlecs_device.json", 1
ENDINGS: dict[str, str] = {"torch": ".pt2", "onnx": ".onnx"}
_LIBRARIES = {"torch": ("torch", "transformers"), "onnx": ("torch", "transformers", "onnx")}
_EXAMPLE_LENGTH = 7
"""Tokens of the instruction that `prefill` is traced with; any number is allowed later."""

log = logging.getLogger(__name__)


class _Prefill(nn.Module):
    """Reads inputs and instruction: extractors, connector and language model."""

    def __init__(
        self,
        names: list[str],
        extractors: list[nn.Module],
        connector: Connector,
        lm: nn.Module,
        *,
        start: list[int],
    ) -> None:
        super().__init__()
        self.names, self.start = names, start
        self.extractors = nn.ModuleList(extractors)
        self.connector, self.lm = connector, lm

    def forward(
        self, inputs: list[Tensor], present: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        read = zip(self.names, self.extractors, inputs, strict=True)
        features = {name: extractor(x) for name, extractor, x in read}
        prompt = self.connector(features, present).prompt
        embed = self.lm.get_input_embeddings()  # type: ignore[operator]
        parts = [as_embeddings(prompt, embed), embed(tokens)]
        if self.start:
            parts.insert(0, embed(torch.tensor([self.start])))
        sequence = torch.cat(parts, dim=1)
        output = self.lm(
            inputs_embeds=sequence,
            attention_mask=torch.ones(sequence.shape[:2], dtype=torch.long),
            use_cache=True,
            logits_to_keep=1,
        )
        return _plain(output)


class _Step(nn.Module):
    """Reads one token after what was read before."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, token: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(keys.shape[0]):
            cache.update(keys[layer], values[layer], layer)
        output = self.lm(
            input_ids=token,
            attention_mask=torch.ones(1, keys.shape[3] + 1, dtype=torch.long),
            past_key_values=cache,
            use_cache=True,
        )
        return _plain(output)


def _plain(output: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401 - an output of transformers
    layers = output.past_key_values.layers
    keys = torch.stack([layer.keys for layer in layers])
    values = torch.stack([layer.values for layer in layers])
    return output.logits[:, -1].float(), keys, values


def write_programs(
    module: MultimodalLM,
    out: Path,
    *,
    format: ProgramFormat,
    preparations: Mapping[str, Preparation],
    precision: str,
    instruction: str | None,
    training: Mapping[str, Any],
) -> Path:
    """Write the programs of the tower that answers, and what it takes to run them.

    The adapter is merged into the weights, which are stored in float32.

    Args:
        module: The model.
        out: The folder to create.
        format: ``torch`` (torch.export) or ``onnx``.
        preparations: How the inputs were prepared in training.
        precision: The precision of training, as in Fabric. The programs compute in float32, so a
            warning says that answers may differ where that is another.
        instruction: The instruction of all training samples; ``None`` if they differ.
        training: How the model was trained, for the configuration.

    Returns:
        ``out``.

    Raises:
        ConfigurationError: If the folder is not empty, a package is missing, or the model has parts
            that cannot be exported; says which.
        FullDiskError: If the disk is full; no partial folder is left.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(f"{str(out)!r} exists; name a new folder to export to")
    _check(module, format)
    backbone = module.tower().backbone
    stored = str(backbone.lm.dtype).removeprefix("torch.")
    if precision != "32-true" or stored != "float32":
        log.warning(
            "the model was trained with precision %s and weights in %s; the programs compute in "
            "float32, so some answers may differ from those of the run",
            precision,
            stored,
        )
    coder = backbone.coder
    with replacing_folder(out) as staging:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about torch
            _write(_own_copy(module), staging, format)
        coder.tokenizer.save_pretrained(staging / "tokenizer")
        config = {
            "format_version": PROGRAMS_VERSION,
            "format": format,
            "versions": {n: version(n) for n in ("mlecs_lightning", *_LIBRARIES[format])},
            "modalities": {name: preparations[name].to_dict() for name in module.modalities},
            "instruction": instruction,
            "end": coder.end,
            "vocabulary": backbone.lm.get_input_embeddings().num_embeddings,
            "positions": coder.positions,
            "before": len(coder.start) + module.tower().connector.prompt_length,
            "max_new_tokens": module.tower().longest_answer,
            "model": backbone.settings.model,
            "training": dict(training),
        }
        text = json.dumps(config, indent=2) + "\n"
        (staging / DEVICE_CONFIG).write_text(text, encoding="utf-8")
        seal_folder(staging)
    return out


def _check(module: MultimodalLM, format: ProgramFormat) -> None:
    if format == "onnx":
        require(Need("--format onnx", "onnx", ("onnx", "onnxscript")))
    tower = module.tower()
    if words := list(tower.reader.limits):
        raise ConfigurationError(
            f"--format {format}: the language model reads {words} as tokens, which the programs "
            "cannot do: declare them with as: vector, or leave out --format"
        )
    if tower.backbone.settings.quantization is not None:
        raise ConfigurationError(
            f"--format {format}: backbone.quantization {tower.backbone.settings.quantization!r} "
            "cannot be exported: leave out --format"
        )


def _own_copy(module: MultimodalLM) -> tuple[nn.Module, nn.Module, list[Tensor]]:
    """Return both programs in float32 on the CPU, and example inputs.

    Everything is copied: models share their frozen weights with others.
    """
    tower = module.tower()
    # In float32 before it is merged: bfloat16 would round small parts of the adapter away.
    lm = copy.deepcopy(tower.backbone.lm).float().merge_and_unload()
    extractors = copy.deepcopy(list(module.extractors.values()))
    for extractor in extractors:
        if isinstance(extractor, PretrainedExtractor):
            extractor.without_cache()
    start = list(tower.backbone.coder.start)
    connector = copy.deepcopy(tower.connector)
    prefill = _Prefill(list(module.modalities), extractors, connector, lm, start=start)
    examples = [torch.zeros(1, *spec.shape) for spec in module.specs.values()]
    return prefill.cpu().float().eval(), _Step(lm).eval(), examples


def _write(parts: tuple[nn.Module, nn.Module, list[Tensor]], folder: Path, format: str) -> None:
    """Trace both programs and write them.

    Raises:
        ConfigurationError: If torch cannot trace the model.
    """
    prefill, step, examples = parts
    Dim = torch.export.Dim
    present = torch.ones(1, len(examples), dtype=torch.bool)
    tokens = torch.ones(1, _EXAMPLE_LENGTH, dtype=torch.long)
    grows = {3: Dim("positions")}
    try:
        _, keys, values = prefill(examples, present, tokens)
        first = torch.export.export(
            prefill,
            (examples, present, tokens),
            dynamic_shapes=([{} for _ in examples], {}, {1: Dim("length")}),
        )
        second = torch.export.export(
            step, (tokens[:, :1], keys, values), dynamic_shapes=({}, grows, grows)
        )
    except Exception as error:  # whatever a model of the hub or of the user's does
        raise ConfigurationError(
            f"--format {format}: torch.export cannot trace this model: {type(error).__name__}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    names = [f"input_{place}" for place in range(len(examples))]
    state = ["keys", "values"]
    outputs = ["logits", *(f"new_{name}" for name in state)]
    for name, program, inputs in (
        ("prefill", first, [*names, "present", "tokens"]),
        ("step", second, ["token", *state]),
    ):
        path = folder / f"{name}{ENDINGS[format]}"
        if format == "torch":
            torch.export.save(program, path)
        else:
            torch.onnx.export(
                program, f=path, input_names=inputs, output_names=outputs, verbose=False
            )
