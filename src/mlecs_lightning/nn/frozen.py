"""Frozen Hugging Face models: shared weights, digests, and adapters from PEFT."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.nn.features import fingerprint
from mlecs_lightning.settings import LoraSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "PRIVATE",
    "add_lora",
    "digests",
    "frozen_tensors",
    "fuse_activations",
    "linear_layers",
    "share",
]

PRIVATE = "private"
"""PEFT's name of the adapter that stays on the device; the one that is sent is PEFT's default."""

_OUR_TARGETS: dict[str, list[str]] = {"smollm3": ["q_proj", "v_proj"]}
"""Default layers of LoRA for families that PEFT has none for: those of a Llama."""

_STORAGE_KEYS = {"architectures", "dtype", "quantization_config", "transformers_version"}
"""Keys of a configuration that describe the file and the storage of the weights."""


@functools.cache
def digests(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the SHA-256 of everything that the answers of a frozen model depend on.

    Tensors are hashed as loaded, not as files: the same model has the same digests in other shards
    or another format, but not with weights of another type. The tensors are hashed in parallel,
    which takes less time than reading them.

    Returns:
        Digests of ``weights``, of ``config`` (the values that differ from the defaults of the model
        family) and of ``tokenizer``.
    """
    return {
        "weights": _weights_digest(model.state_dict()),
        "config": _digest(_changed_values(model.config)),
        "tokenizer": _digest([_rules(tokenizer), tokenizer.special_tokens_map]),
    }


def _weights_digest(state: Mapping[str, Any]) -> str:
    named = sorted((name, value) for name, value in state.items() if isinstance(value, Tensor))
    whole = hashlib.sha256()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        contents = pool.map(lambda item: fingerprint([item[1]]), named)
        for (name, _), content in zip(named, contents, strict=True):
            whole.update(name.encode() + b"\0" + content)
    return whole.hexdigest()


def _changed_values(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the values that differ from the defaults, to which new versions add keys."""
    defaults = type(config)().to_dict()
    return {
        key: value
        for key, value in config.to_dict().items()
        if key not in _STORAGE_KEYS and not key.startswith("_") and value != defaults.get(key)
    }


def _rules(tokenizer: PreTrainedTokenizerBase) -> Any:  # noqa: ANN401 - JSON
    """Return the whole pipeline of a tokenizer, or the vocabulary of one written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab()
    rules = json.loads(backend.to_str())
    # Every call of the tokenizer changes these two.
    return {key: rule for key, rule in rules.items() if key not in ("padding", "truncation")}


def _digest(value: Any) -> str:  # noqa: ANN401 - JSON
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def fuse_activations(model: nn.Module) -> None:
    """Replace transformers' own tanh approximations of GELU by torch's fused kernel.

    GPT-2, GPT-J and others compute it in eight elementwise operations, each with a tensor of its
    own; the result is the same up to rounding.
    """
    from transformers.activations import FastGELUActivation, NewGELUActivation

    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, FastGELUActivation | NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def share(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model's modules that shares its frozen tensors.

    PEFT inserts its layers into the given modules. A copy of the modules takes kilobytes, while the
    weights (gigabytes) exist once, and each copy can have an adapter of its own.
    """
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, memo={id(t): t for t in tensors})


def frozen_tensors(module: nn.Module) -> set[str]:
    """Return the names of all tensors, buffers included, except trainable parameters."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers(remove_duplicate=False))
    learned = {name for name, p in parameters.items() if p.requires_grad}
    # The state of quantised layers has more than parameters and buffers.
    return {*module.state_dict(), *parameters, *buffers} - learned


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Return the last parts of the names of all linear layers except the output layer."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        }
    )


def add_lora(
    model: PreTrainedModel, lora: LoraSettings, *, task: str | None, key: str, what: str
) -> PeftModel:
    """Insert a new adapter into a model.

    Args:
        model: The model; it is changed.
        lora: The adapter.
        task: PEFT's task type.
        key: The YAML key of ``target_modules``, for error messages.
        what: The model's name in error messages.

    Raises:
        ConfigurationError: If a given name is not a layer that LoRA can adapt, or no name is given
            and PEFT has no default for the model family. The message lists the linear layers.
    """
    from peft import LoraConfig, get_peft_model

    layers = linear_layers(model)
    given = lora.target_modules
    if given is None:
        given = _OUR_TARGETS.get(model.config.model_type)
    # PEFT ignores names that are not layers, as long as one name is.
    unknown = _unknown_layers(model, given or ())
    if unknown:
        raise ConfigurationError(
            f"{key}: {what} has no layers {unknown}; its linear layers are {layers}"
        )
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=given,
        task_type=task,
    )
    with warnings.catch_warnings():
        # GPT-2's Conv1D layers store the transposed weights: PEFT handles it, and warns.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        # PEFT uses the interface of transformers 4.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            family = model.config.model_type
            why = f"PEFT has no default for the family {family!r}" if given is None else error
            raise ConfigurationError(
                f"{key}: {what}: {why}; name some of its linear layers: {layers}"
            ) from error
        if lora.private_r:
            # Both have the same scale alpha / r.
            alpha = lora.alpha * lora.private_r / lora.r
            own = replace(config, r=lora.private_r, lora_alpha=alpha)  # type: ignore[arg-type]
            adapted.add_adapter(PRIVATE, own)
            # Their updates are added; `PeftModel.set_adapter` would activate only one.
            adapted.base_model.set_adapter(["default", PRIVATE])  # type: ignore[operator]
    return adapted


def _unknown_layers(model: nn.Module, targets: Sequence[str]) -> list[str]:
    names = [f".{name}" for name, _ in model.named_modules()]
    unknown = []
    for target in targets:
        if not any(name.endswith(f".{target}") for name in names):
            unknown.append(target)
    return unknown
