"""Settings of a model, as frozen dataclasses that check themselves.

They are the values of the YAML keys `server`, `edge` and `clients.<name>`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mlecs_lightning.class_paths import ClassPath, check_class_path
from mlecs_lightning.errors import ConfigurationError, FaultList
from mlecs_lightning.storage.paths import expanded, expanded_name

__all__ = [
    "BackboneSettings",
    "ConnectorSettings",
    "LoraSettings",
    "ModelSettings",
    "cache_dir",
    "override",
    "value_faults",
]


def cache_dir() -> Path:
    """Return the cache folder: ``MLECS_CACHE``, or one in the user's cache."""
    return expanded(os.environ.get("MLECS_CACHE", "~/.cache/mlecs_lightning"), key="MLECS_CACHE")


@dataclass(frozen=True)
class BackboneSettings:
    """The causal language model, and how it is loaded.

    Attributes:
        model: Hub id or directory of any causal language model, or a pocket model. Those
            (``pocket/xs``, ``pocket/slm``, ``pocket/llm``) are small models that are trained on
            this machine, without a hub.
        revision: Branch, tag or commit on the hub.
        dtype: Storage of the frozen weights; ``auto`` keeps the checkpoint's own,
            but for float16, which becomes float32.
        attn_implementation: As in transformers: ``eager``, ``sdpa``, ``flash_attention_2``.
        local_files_only: Use only files on this machine, and never ask the hub.
        quantization: Store the frozen weights in ``4bit`` or ``8bit``; needs a CUDA GPU. The former
            is NF4, as in QLoRA (arXiv 2305.14314), the latter LLM.int8 (arXiv 2208.07339). Needs
            the extra ``quantized``.
        gradient_checkpointing: Recompute activations in the backward pass, to save memory. Takes
            about a third more time; the gradients are the same.
    """

    model: str = "pocket/slm"
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: str | None = None
    local_files_only: bool = False
    quantization: Literal["4bit", "8bit"] | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Expand ``~`` and ``$NAME`` in a directory."""
        object.__setattr__(self, "model", expanded_name(self.model, key="model"))


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adaptation of the backbone (arXiv 2106.09685), implemented by PEFT.

    The defaults are those of the ML-ECS reference configuration.

    Attributes:
        r: Rank of the adapter.
        alpha: Scale of the adapter; the weights change by alpha / r * B A.
        dropout: Dropout probability on the adapter's input.
        target_modules: Names of the layers to adapt; by default PEFT chooses for the model family.
        private_r: Rank of a second adapter that never leaves the device; 0 for none. It has the
            same layers, scale and dropout. For clients only.
        scope: Which of the two adapters a client trains in which pass: ``per_stage`` trains the one
            that travels on public data and the private one on private data, so that what travels
            has seen no private sample; by default both train in both passes. Source: an adapter for
            each stage, as in the public configuration of the ML-ECS authors, but beside each other
            as in FedDPA (arXiv 2403.19211).
    """

    r: int = 8
    alpha: int = 16
    dropout: float = 0.05
    target_modules: list[str] | None = None
    private_r: int = 0
    scope: Literal["per_stage"] | None = None

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.r < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1 or self.private_r < 0:
            raise ConfigurationError(
                "lora: r must be at least 1, alpha positive, dropout in [0, 1) and private_r not "
                f"negative, got {self}"
            )
        if self.scope not in (None, "per_stage"):
            raise ConfigurationError(f"lora.scope must be 'per_stage' or null, got {self.scope!r}")
        if self.scope and not self.private_r:
            raise ConfigurationError(
                "lora.scope 'per_stage' trains an adapter of its own on private data: set "
                "lora.private_r to its rank, for example to r"
            )


@dataclass(frozen=True)
class ConnectorSettings:
    """The connector between modalities and backbone.

    Attributes:
        width: Width D of the latent space that all parties share. All need the same one; 256 in
            the reference configuration.
        prompt_length: Number P of soft-prompt positions; 16 in the reference configuration.
        dropout: Dropout probability before the soft prompt.
    """

    width: int = 256
    prompt_length: int = 16
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.width < 1 or self.prompt_length < 1 or not 0 <= self.dropout < 1:
            raise ConfigurationError(
                "connector: width and prompt_length must be at least 1 and dropout in [0, 1), "
                f"got {self}"
            )


@dataclass(frozen=True)
class ModelSettings:
    """One party's model: extractors, connector, language model, and their optimiser.

    Attributes:
        backbone: The frozen language model.
        lora: Its adapter.
        connector: Maps the modalities to a soft prompt.
        extractors: Encoder of each modality, as a class; by default a small one for its kind. See
            `mlecs_lightning.nn.extractors.small`.
        optimizer: Built over the trainable parameters. AdamW with 2e-4 in the reference
            configuration.
        max_new_tokens: Maximum number of tokens in an answer.
        lr_scheduler: Steps the learning rate after every round in which the party takes part; none
            by default. It has no effect in Lightning's own `Trainer`, which has no rounds.
        inference: ``int8`` lets clients answer with an 8-bit copy of their model. That is on the
            CPU, with precision 32-true; training is not affected. For 4 bits on a GPU see
            ``backbone.quantization``.
    """

    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    connector: ConnectorSettings = field(default_factory=ConnectorSettings)
    extractors: dict[str, ClassPath] = field(default_factory=dict)
    optimizer: ClassPath = field(
        default_factory=lambda: {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-4}}
    )
    max_new_tokens: int = 32
    lr_scheduler: ClassPath | None = None
    inference: Literal["float", "int8"] = "float"

    def __post_init__(self) -> None:
        """Check class paths and ranges."""
        faults = FaultList()
        faults.attempt(check_class_path, self.optimizer, key="optimizer")
        if self.lr_scheduler is not None:
            faults.attempt(check_class_path, self.lr_scheduler, key="lr_scheduler")
        for modality, extractor in self.extractors.items():
            faults.attempt(check_class_path, extractor, key=f"extractors.{modality}")
        if self.max_new_tokens < 1:
            faults.append(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        faults.raise_any()

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, strings and numbers, for a weights-only checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSettings:
        """Build from what `to_dict` returned."""
        # Starts from the given optimiser, so no argument of the default one is kept.
        fresh = cls(optimizer=values["optimizer"])
        return override(fresh, values, key="settings")  # type: ignore[no-any-return]


def override(settings: Any, values: Mapping[str, Any], *, key: str) -> Any:  # noqa: ANN401 - any dataclass
    """Return ``settings`` with some values replaced, including single values of nested dataclasses.

    Values that are not named are kept: with ``lora: {r: 4}`` a client keeps the alpha of all edges.

    Args:
        settings: A dataclass instance.
        values: The values to replace.
        key: The YAML key of ``values``, for error messages.

    Raises:
        ConfigurationError: If a name is unknown, a value has the wrong type, or a dataclass refuses
            its new values; one message with all faults and their keys.
    """
    sound: dict[str, Any] = {}
    faults = FaultList()
    for name, value in values.items():
        current: Any = getattr(settings, name, None)
        if not (is_dataclass(current) or isinstance(current, Mapping)):
            wrong = value_faults(type(settings), {name: value}, key=key)
            faults += wrong
            sound |= {} if wrong else {name: value}
        elif not isinstance(value, Mapping):
            faults.append(f"{key}.{name}: expected keys and their values, got {value!r}")
        elif is_dataclass(current):
            with faults.collecting():
                sound[name] = override(current, value, key=f"{key}.{name}")
        elif name in ("optimizer", "lr_scheduler"):
            # A part of a class path is enough; other keys, such as a bare `lr`, are refused.
            with faults.collecting():
                check_class_path({**current, **value}, key=f"{key}.{name}")
                sound[name] = _merge_class_path(dict(current), dict(value))
        else:
            sound[name] = {**current, **value}
    try:
        replaced = replace(settings, **sound)
    except (TypeError, ValueError) as error:
        faults += [f"{key}: {line}" for line in str(error).splitlines()]
    faults.raise_any()
    return replaced


def value_faults(kind: type, values: Mapping[str, Any], *, key: str) -> list[str]:
    """Return the faults of values without a field in a dataclass, or of the wrong type.

    Args:
        kind: The dataclass.
        values: Values of some of its fields.
        key: The YAML key of ``values``.
    """
    kinds = get_type_hints(kind)
    unknown = [name for name in values if name not in kinds]
    faults = [f"{key}: unknown keys {unknown}, known: {list(kinds)}"] if unknown else []
    return faults + [
        f"{key}.{name}: expected {_in_words(kinds[name])}, got {value!r}"
        for name, value in values.items()
        if name in kinds and not _fits(value, kinds[name])
    ]


def _fits(value: object, kind: Any) -> bool:  # noqa: ANN401 - an annotation
    """Return whether a YAML value fits an annotation; an integer counts as a float."""
    origin, options = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in options
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in options)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, options[0]) for item in value)
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


def _in_words(kind: Any) -> str:  # noqa: ANN401 - an annotation
    origin, options = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {list(options)}"
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, options))
    if origin is list:
        return f"a list of {_in_words(options[0])}"
    if origin is dict or is_dataclass(kind):
        return "keys and their values"
    return "null" if kind is NoneType else str(kind.__name__)


def _merge_class_path(current: ClassPath, value: ClassPath) -> ClassPath:
    """Merge class paths; arguments are kept only if the class stays the same."""
    path = value.get("class_path", current["class_path"])
    kept = current.get("init_args") or {} if path == current["class_path"] else {}
    return {"class_path": path, "init_args": {**kept, **(value.get("init_args") or {})}}
