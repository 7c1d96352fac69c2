"""Expansion of paths as users write them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mlecs_lightning.errors import ConfigurationError

__all__ = ["expanded", "expanded_name"]

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)


def expanded(path: str | Path, *, key: str = "") -> Path:
    """Return a path with ``~``, ``$NAME`` and ``${NAME}`` expanded, as in a shell.

    All options that are paths are expanded here.

    Args:
        path: The path.
        key: Its YAML key, for error messages.

    Raises:
        ConfigurationError: If a variable is not set or a user does not exist.
    """
    written, where = str(path), f"{key}: " if key else ""
    unset = [a or b for a, b in _VARIABLE.findall(written) if (a or b) not in os.environ]
    if unset:
        raise ConfigurationError(
            f"{where}the path {written!r} names {unset}, and no such variable is set: "
            f"export {unset[0]}=..., or write the path in full"
        )
    try:
        return Path(os.path.expandvars(written)).expanduser()
    except RuntimeError as error:
        raise ConfigurationError(
            f"{where}the path {written!r} begins with the home of a user that is not there: "
            "write the path in full"
        ) from error


def expanded_name(name: str, *, key: str = "") -> str:
    """Expand a name that may be a path or a hub id, if it contains anything to expand."""
    return str(expanded(name, key=key)) if name.startswith("~") or "$" in name else name
