"""Settings as plain data, and what differs between two of them, key by key."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "alike",
    "arguments_of",
    "as_data",
    "default_arguments",
    "differences",
    "untold_arguments",
]


def differences(
    saved: Mapping[str, Any],
    present: Mapping[str, Any],
    *,
    same: Callable[[object, object], bool] = operator.eq,
) -> dict[str, str]:
    """Return for each key that differs, joined by dots, a line with both values.

    A key that is missing is as good as ``None``: nobody's choice.
    """
    old, new = _flat(saved), _flat(present)
    return {
        key: f"{key}: {old.get(key)!r} in the checkpoint, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if not same(old.get(key), new.get(key))
    }


def alike(one: object, other: object) -> bool:
    """Return whether two settings may mean the same: a model may lie in another folder here."""
    if one == other or not (isinstance(one, str) and isinstance(other, str)):
        return one == other
    first, second = Path(one), Path(other)
    return first.is_absolute() and second.is_absolute() and first.name == second.name


def as_data(value: object) -> Any:  # noqa: ANN401 - any plain value
    """Return settings as dicts, lists, strings and numbers, which a checkpoint may hold.

    A set becomes a sorted list, a dataclass the dict of its fields, and any other object its class
    with its `arguments_of`.
    """
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)  # not a subclass, such as a number of numpy
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): as_data(each) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(as_data, value), key=repr)
    if isinstance(value, list | tuple):
        return [as_data(each) for each in value]
    if is_dataclass(value):
        return {each.name: as_data(getattr(value, each.name)) for each in fields(value)}
    return {"class_path": type(value).__name__, "init_args": arguments_of(value)}


def arguments_of(part: object) -> dict[str, Any]:
    """Return the arguments that an object keeps as attributes of the same name, as plain data."""
    names = _argument_names(type(part))
    return {name: as_data(getattr(part, name)) for name in names if _keeps(part, name)}


def untold_arguments(part: object) -> list[str]:
    """Return the names of the arguments that `arguments_of` an object lacks."""
    return [name for name in _argument_names(type(part)) if not _keeps(part, name)]


def default_arguments(kind: type) -> dict[str, Any]:
    """Return the defaults of the arguments of a class and its bases, as plain data."""
    defaults: dict[str, Any] = {}
    for each in reversed(kind.__mro__):
        for name, parameter in _parameters(each).items():
            defaults.pop(name, None)
            if parameter.default is not parameter.empty:
                defaults[name] = as_data(parameter.default)
    return defaults


def _keeps(part: object, name: str) -> bool:
    """Return whether an attribute can be an argument: a method of that name is none."""
    return hasattr(part, name) and not inspect.ismethod(getattr(part, name))


def _argument_names(kind: type) -> list[str]:
    """Return the names of all arguments of a class and its bases."""
    names: dict[str, None] = {}
    for each in kind.__mro__:
        names |= dict.fromkeys(_parameters(each))
    return list(names)


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a class's own ``__init__``; none if it has none."""
    init = vars(kind).get("__init__")
    if not inspect.isfunction(init):
        return {}
    return {
        name: parameter
        for name, parameter in list(inspect.signature(init).parameters.items())[1:]
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
