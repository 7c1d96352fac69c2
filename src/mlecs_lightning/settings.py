"""What a model is made of, as frozen dataclasses that check themselves.

The YAML keys `server`, `edge` and the overrides under `clients.<name>` are these classes.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "BackboneSettings",
    "ClassPath",
    "ConfigurationError",
    "ConnectorSettings",
    "LoraSettings",
    "ModelSettings",
    "build_class",
    "cache_dir",
    "check_class_path",
    "override",
]


class ConfigurationError(ValueError):
    """What a user wrote does not fit; says which keys and what is allowed."""


def cache_dir() -> Path:
    """Return where made things are kept: ``MLECS_CACHE``, or a folder in the user's cache."""
    return Path(os.environ.get("MLECS_CACHE", "~/.cache/mlecs_lightning")).expanduser()


ClassPath = dict[str, Any]
"""A class to be built later, once for every client: ``class_path`` and ``init_args``, as in
Lightning.

A bare name is looked up in the package that offers the default (`mlecs_lightning.nn` for
extractors, `torch.optim` for optimisers). A plain dict and no dataclass: jsonargparse takes these
two keys of a dataclass for the class path of the dataclass itself.
"""


def check_class_path(setting: object, *, key: str) -> None:
    """Check the form of a class path.

    Raises:
        ConfigurationError: If it is no dict of ``class_path`` and, at most, ``init_args``.
    """
    fits = (
        isinstance(setting, Mapping)
        and isinstance(setting.get("class_path"), str)
        and isinstance(setting.get("init_args") or {}, Mapping)
        and setting.keys() <= {"class_path", "init_args"}
    )
    if not fits:
        raise ConfigurationError(f"{key}: expected class_path and init_args, got {setting!r}")


def build_class(setting: ClassPath, *args: Any, home: str, key: str) -> Any:  # noqa: ANN401 - the user's
    """Import a class and call it.

    Args:
        setting: The class path.
        *args: Positional arguments, before ``init_args``.
        home: Package in which a bare name is looked up.
        key: The YAML key that holds this setting, for error messages.

    Raises:
        ConfigurationError: If the class does not exist or does not take ``init_args``.
    """
    check_class_path(setting, key=key)
    path = setting["class_path"]
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module or home), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{key}.class_path: cannot import {path!r}: {error}") from error
    try:
        return cls(*args, **(setting.get("init_args") or {}))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{key}.init_args: {path}: {error}") from error


@dataclass(frozen=True)
class BackboneSettings:
    """Which causal language model, and how it is loaded.

    Attributes:
        model: Hub id or directory for `AutoModelForCausalLM.from_pretrained`, or ``pocket/slm``,
            ``pocket/llm``: small models that are made on this machine and need no hub.
        revision: Branch, tag or commit on the hub.
        dtype: Storage of the frozen weights; ``auto`` keeps the checkpoint's own.
        attn_implementation: As in transformers (``eager``, ``sdpa``, ``flash_attention_2``).
        local_files_only: Never ask the hub.
    """

    model: str = "pocket/slm"
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: str | None = None
    local_files_only: bool = False


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adaptation of the backbone (arXiv 2106.09685), carried out by PEFT.

    The values are those of the ML-ECS reference configuration.

    Attributes:
        r: Rank.
        alpha: Scale; the update is alpha / r * B A.
        dropout: Dropout on the adapter's input.
        target_modules: Names of the layers to adapt; ``None`` lets PEFT choose for the family.
    """

    r: int = 8
    alpha: int = 16
    dropout: float = 0.05
    target_modules: list[str] | None = None

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.r < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ConfigurationError(
                f"lora: r must be at least 1, alpha positive and dropout in [0, 1), got {self}"
            )


@dataclass(frozen=True)
class ConnectorSettings:
    """Size of the connector.

    Attributes:
        width: Width D of the latent space that all parties share; 256 in the reference
            configuration.
        prompt_length: Soft-prompt positions P; 16 in the reference configuration.
        dropout: Dropout before the prompt.
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
    """One model {E, C, B}: extractors, connector, backbone, and its optimiser.

    Attributes:
        backbone: The frozen language model.
        lora: Its adapter.
        connector: From modalities to soft prompt.
        extractors: For each modality the class of its encoder; the others get the default of their
            kind (`mlecs_lightning.nn.extractors`).
        optimizer: Built over the trainable parameters. AdamW with 2e-4 in the reference
            configuration.
        max_new_tokens: Longest answer that is generated.
    """

    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    connector: ConnectorSettings = field(default_factory=ConnectorSettings)
    extractors: dict[str, ClassPath] = field(default_factory=dict)
    optimizer: ClassPath = field(
        default_factory=lambda: {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-4}}
    )
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        """Check the form of the class paths."""
        check_class_path(self.optimizer, key="optimizer")
        for modality, extractor in self.extractors.items():
            check_class_path(extractor, key=f"extractors.{modality}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, strings and numbers: what a weights-only checkpoint may hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSettings:
        """Build from what `to_dict` returned."""
        # Not over the default optimiser: arguments that it has and these values lack would stay.
        fresh = cls(optimizer=values["optimizer"])
        return override(fresh, values, key="settings")  # type: ignore[no-any-return]


def override(settings: Any, values: Mapping[str, Any], *, key: str) -> Any:  # noqa: ANN401 - any dataclass
    """Return ``settings`` with some values replaced, nested dataclasses value by value.

    Unlike parsing a whole dataclass from a partial dict, this keeps what is not named: a client's
    ``lora: {r: 4}`` keeps the alpha that all edges have.

    Args:
        settings: A dataclass instance.
        values: The values to replace.
        key: The YAML key of ``values``, for error messages.

    Raises:
        ConfigurationError: If a name does not exist, a value is no dict where one belongs, or a
            dataclass refuses its new value; it names the key.
    """
    known = [f.name for f in fields(settings)]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ConfigurationError(f"{key}: unknown keys {unknown}, known: {known}")
    changed: dict[str, Any] = {}
    for name, value in values.items():
        current = getattr(settings, name)
        nested = is_dataclass(current) or isinstance(current, Mapping)
        if nested and not isinstance(value, Mapping):
            raise ConfigurationError(f"{key}.{name}: expected keys and their values, got {value!r}")
        if is_dataclass(current):
            changed[name] = override(current, value, key=f"{key}.{name}")
        elif name == "optimizer":
            # A part of a class path will do, but nothing else: a bare `lr` would be lost.
            check_class_path({**current, **value}, key=f"{key}.{name}")
            changed[name] = _merge_class_path(current, value)
        elif nested:
            changed[name] = {**current, **value}
        else:
            changed[name] = value
    try:
        return replace(settings, **changed)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{key}: {error}") from error


def _merge_class_path(current: ClassPath, value: ClassPath) -> ClassPath:
    """Keep the arguments of the class unless another class comes in: they mean nothing to it."""
    path = value.get("class_path", current["class_path"])
    kept = current.get("init_args") or {} if path == current["class_path"] else {}
    return {"class_path": path, "init_args": {**kept, **(value.get("init_args") or {})}}
