"""Class paths: classes that a configuration names, to be imported and built later."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any

from mlecs_lightning.errors import ConfigurationError

__all__ = [
    "ClassPath",
    "build_class",
    "check_call",
    "check_class_path",
    "import_class",
    "wanted_arguments",
]

ClassPath = dict[str, Any]
"""A class to be built later, once per client: ``class_path`` and ``init_args``, as in Lightning.

A bare name is looked up in a default package (`mlecs_lightning.nn` for extractors, `torch.optim`
for optimisers). A dict, not a dataclass, since jsonargparse would take these two keys as the class
path of the dataclass itself.
"""


def check_class_path(setting: object, *, key: str) -> None:
    """Check the format of a class path.

    Raises:
        ConfigurationError: If it is not a dict of ``class_path`` and, optionally, ``init_args``.
    """
    fits = (
        isinstance(setting, Mapping)
        and isinstance(setting.get("class_path"), str)
        and isinstance(setting.get("init_args") or {}, Mapping)
        and setting.keys() <= {"class_path", "init_args"}
    )
    if not fits:
        raise ConfigurationError(f"{key}: expected class_path and init_args, got {setting!r}")


def build_class(
    setting: ClassPath,
    *args: Any,
    home: str,
    key: str,
    offered: Mapping[str, object] = MappingProxyType({}),
) -> Any:  # noqa: ANN401 - a user's class
    """Import a class and call it.

    Args:
        setting: The class path.
        *args: Positional arguments, before ``init_args``.
        home: Package in which a bare name is looked up.
        key: The YAML key that holds this setting, for error messages.
        offered: Further arguments by name, passed only if the class wants them.

    Raises:
        ConfigurationError: If the class does not exist or does not take ``init_args``.
    """
    cls = import_class(setting, home=home, key=key)
    try:
        return cls(*args, **wanted_arguments(cls, offered), **(setting.get("init_args") or {}))
    except (TypeError, ValueError) as error:
        given = setting.get("init_args") or {}
        raise ConfigurationError(
            f"{key}.init_args: {setting['class_path']}: {error}; got {given}"
        ) from error


def wanted_arguments(cls: Any, offered: Mapping[str, object]) -> dict[str, object]:  # noqa: ANN401 - a user's class
    """Return those arguments that a constructor names, or passes on to one that names them.

    ``**kwargs`` counts as passing on to the base class, as in ``class Mine(ImageCNN)``.

    Args:
        cls: A class, or a function that returns an object.
        offered: The arguments by name.
    """
    if not isinstance(cls, type):
        return {name: value for name, value in offered.items() if name in signature(cls).parameters}
    named: set[str] = set()
    for each in cls.__mro__[:-1]:  # all but `object`
        if "__init__" not in vars(each):
            continue
        parameters = signature(vars(each)["__init__"]).parameters.values()
        named.update(parameter.name for parameter in parameters)
        if all(parameter.kind is not Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return {name: value for name, value in offered.items() if name in named}


def import_class(setting: ClassPath, *, home: str, key: str) -> Any:  # noqa: ANN401 - a user's class
    """Import a class.

    Args:
        setting: The class path.
        home: Package in which a bare name is looked up.
        key: The YAML key that holds this setting, for error messages.

    Raises:
        ConfigurationError: If there is no such class; names those of ``home``.
    """
    check_class_path(setting, key=key)
    path = setting["class_path"]
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module or home), name)
    except (ImportError, AttributeError) as error:
        here = importlib.import_module(home)
        exported = getattr(here, "__all__", ())
        known = sorted(
            k
            for k, v in vars(here).items()
            if isinstance(v, type) and k[0] != "_"
            if k in exported or v.__module__.startswith(home)
        )
        raise ConfigurationError(
            f"{key}.class_path: cannot import {path!r}: {error}; a bare name is one of {known}"
        ) from error


def check_call(
    setting: ClassPath,
    *args: Any,
    home: str,
    key: str,
    offered: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Check that a class exists and takes these arguments, without calling it.

    Args:
        setting: The class path.
        *args: Positional arguments, before ``init_args``.
        home: Package in which a bare name is looked up.
        key: The YAML key that holds this setting, for error messages.
        offered: Further arguments by name, as in `build_class`.

    Raises:
        ConfigurationError: If it does not; names the arguments that it takes.
    """
    cls = import_class(setting, home=home, key=key)
    try:
        takes = signature(cls)
    except (TypeError, ValueError):
        return  # written in C, without a signature
    wanted = wanted_arguments(cls, offered)
    try:
        takes.bind(*args, **wanted, **(setting.get("init_args") or {}))
    except TypeError as error:
        known = [name for name in list(takes.parameters)[len(args) :] if name not in wanted]
        raise ConfigurationError(
            f"{key}.init_args: {setting['class_path']}: {error}; known: {known}"
        ) from error
