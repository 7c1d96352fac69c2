"""Paths as a user writes them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mlecs_lightning.errors import ConfigurationError

__all__ = ["expanded", "expanded_name"]

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)


def expanded(path: str | Path, *, key: str = "") -> Path:
    """Return a path with ``~``, ``$NAME`` and ``${NAME}`` replaced, as a shell would.

    Every key that is a path goes through here, so that all of them mean the same.

    Args:
        path: What the user wrote.
        key: Where, for error messages.

    Raises:
        ConfigurationError: If a variable is not set, or there is no such user: the path would be
            another one than the user meant.
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
    """Expand what is a path or an id of a hub, if it is a path that has to be."""
    return str(expanded(name, key=key)) if name.startswith("~") or "$" in name else name
