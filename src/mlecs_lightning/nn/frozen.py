"""Frozen Hugging Face models: one copy of the weights for all who use them, adapted by PEFT."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import warnings
from collections.abc import Mapping
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
"""PEFT's name of the adapter that never leaves a device; the one that travels is its default."""


_NO_CONTENT = {"architectures", "dtype", "quantization_config", "transformers_version"}
"""What a configuration says of its file and of how the weights are stored."""


@functools.cache
def digests(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the SHA-256 of all that the answers of a frozen model depend on, asked once.

    Of the tensors as they were loaded, not of files: the same model in other shards or another
    format, or saved again, is the same; weights stored in other types or bits are not. The tensors
    are hashed by all threads at once, which takes less time than reading them did.

    Returns:
        That of its ``weights``, of its ``config`` (what differs from its family's defaults) and of
        its ``tokenizer``.
    """
    return {
        "weights": _weights_digest(model.state_dict()),
        "config": _digest(_spoken(model.config)),
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


def _spoken(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what a configuration says beside its family's defaults, which grow with versions."""
    defaults = type(config)().to_dict()
    return {
        key: value
        for key, value in config.to_dict().items()
        if key not in _NO_CONTENT and not key.startswith("_") and value != defaults.get(key)
    }


def _rules(tokenizer: PreTrainedTokenizerBase) -> Any:  # noqa: ANN401 - JSON
    """Return the whole pipeline of a tokenizer; of one that runs in Python, its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab()
    rules = json.loads(backend.to_str())
    # Every call sets these two.
    return {key: rule for key, rule in rules.items() if key not in ("padding", "truncation")}


def _digest(value: Any) -> str:  # noqa: ANN401 - JSON
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def fuse_activations(model: nn.Module) -> None:
    """Give each tanh approximation of GELU that transformers writes out to torch's one kernel.

    GPT-2, GPT-J and others have the one of eight elementwise operations, each with a tensor of its
    own; the function is the same to rounding.
    """
    from transformers.activations import FastGELUActivation, NewGELUActivation

    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, FastGELUActivation | NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def share(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of the modules that holds the very same frozen tensors.

    PEFT inserts its layers into the modules it is given. With a copy of the modules (kilobytes)
    over one set of weights (gigabytes), every architecture gets an adapter of its own and an
    ordinary `PeftModel`.
    """
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, memo={id(t): t for t in tensors})


def frozen_tensors(module: nn.Module) -> set[str]:
    """Return the names of all tensors but the parameters that train, buffers included."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers(remove_duplicate=False))
    learned = {name for name, p in parameters.items() if p.requires_grad}
    # Quantised layers keep more in their state than parameters and buffers.
    return {*module.state_dict(), *parameters, *buffers} - learned


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Return the last names of the layers that LoRA adapts as a rule: all linear but the output."""
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
    """Insert a fresh adapter into a model by PEFT.

    Args:
        model: The model; it is changed.
        lora: The adapter.
        task: PEFT's task type.
        key: The YAML key of ``target_modules``, for error messages.
        what: Whose layers these are, for error messages.

    Raises:
        ConfigurationError: If a name that is given is no layer that LoRA can adapt, or none is
            given and PEFT has no default for the family. It names the linear layers that there are.
    """
    from peft import LoraConfig, get_peft_model

    layers, given = linear_layers(model), lora.target_modules
    names = [f".{name}" for name, _ in model.named_modules()]
    # PEFT leaves out a name that is no layer as long as another one is.
    unknown = [t for t in given or () if not any(name.endswith(f".{t}") for name in names)]
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
        # GPT-2's Conv1D layers store the transpose; PEFT sees it, corrects itself and warns.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        # PEFT asks transformers 5 in the words of transformers 4.
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
            # The same scale: alpha / r of both is equal.
            alpha = lora.alpha * lora.private_r / lora.r
            own = replace(config, r=lora.private_r, lora_alpha=alpha)  # type: ignore[arg-type]
            adapted.add_adapter(PRIVATE, own)
            # Both add up; PEFT's own model class would set one alone.
            adapted.base_model.set_adapter(["default", PRIVATE])  # type: ignore[operator]
    return adapted
