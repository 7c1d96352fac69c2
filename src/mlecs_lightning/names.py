"""Rules for the names of clients and modalities."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable

__all__ = ["client_name_faults", "modality_name_faults"]

# File names may have 255 bytes; a temporary name (`.NAME@0000.pt-xxxxxxxx.tmp`) adds up to 55.
_MOST_BYTES = 200

_TAKEN = {"server": "the server", "all": "the mean of all clients", "val": "a split"}
# Names of devices on Windows, with or without an extension.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10))}


def client_name_faults(names: Iterable[str]) -> list[str]:
    """Return the faults of client names, which become folders and parts of metric names.

    Args:
        names: The names of all clients.

    Returns:
        The faults, each with what is allowed.

    Example:
        >>> client_name_faults(["kitchen", "Hall", "hall"])
        ["clients: the names 'Hall' and 'hall' differ in case alone, and are one folder on some \
systems: rename one"]
    """
    faults = []
    seen: dict[str, str] = {}
    for name in names:
        fault = _client_fault(name)
        if fault:
            faults.append(f"clients: the name {_short(name)} {fault}")
            continue
        same = unicodedata.normalize("NFC", name).casefold()
        other = seen.setdefault(same, name)
        if other != name:
            faults.append(
                f"clients: the names {_short(other)} and {_short(name)} are one folder on some "
                "systems: rename one"
            )
    return faults


def _client_fault(name: str) -> str | None:
    if not re.fullmatch(r"\w(?:[\w. -]*[\w-])?", unicodedata.normalize("NFC", name)):
        return (
            "is no name; one begins with a letter, a digit or '_' and goes on with these, '.', '-' "
            "and spaces, the last two signs not being '.' or a space"
        )
    if name.casefold() in _TAKEN:
        return f"is taken, by {_TAKEN[name.casefold()]}: rename the client"
    if name.casefold().partition(".")[0] in _DEVICES:
        return "is that of a device on Windows: rename the client"
    return _length_fault(name)


def modality_name_faults(names: Iterable[str], *, key: str) -> list[str]:
    """Return the faults of modality names, which become parts of tensor names.

    Args:
        names: The names of all modalities.
        key: The YAML key that holds them.

    Returns:
        The faults, each with what is allowed.
    """
    faults = []
    for name in names:
        fault = (
            None
            if re.fullmatch(r"[^\W\d]\w*", name)
            else "cannot name a modality: expected a letter or '_', then letters, digits and '_'"
        ) or _length_fault(name)
        if fault:
            faults.append(f"{key}: {_short(name)} {fault}")
    return faults


def _length_fault(name: str) -> str | None:
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > _MOST_BYTES:
        return f"has {size} bytes, at most {_MOST_BYTES} are allowed: shorten it"
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return "cannot name a file in this locale: set PYTHONUTF8=1, or use ASCII letters"
    return None


def _short(name: str) -> str:
    return repr(name if len(name) <= 60 else f"{name[:57]}...")
