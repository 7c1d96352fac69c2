"""Rules for the names of clients and modalities."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable

__all__ = ["client_name_faults", "look_alike", "modality_name_faults"]

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
    seen: dict[str, str] = {}
    for name in names:
        fault = (
            None
            if re.fullmatch(r"\w(?:[\w -]*[\w-])?", unicodedata.normalize("NFC", name))
            else "cannot name a modality: expected letters, digits, '_', '-' and spaces, and one "
            "of the first three at the start; no points, since names of tensors have them"
        ) or _length_fault(name)
        if fault:
            faults.append(f"{key}: {_short(name)} {fault}")
            continue
        other = seen.setdefault(unicodedata.normalize("NFC", name), name)
        if other != name:
            like = look_alike(name, [other])
            faults.append(f"{key}: two modalities are called {_short(name)}{like}")
    return faults


def look_alike(name: str, names: Iterable[str]) -> str:
    """Say that another name looks the same, or differs in case alone.

    Args:
        name: A name that was not found.
        names: Those that there are.

    Returns:
        Words to add to a message, empty if no name is like it.

    Example:
        >>> look_alike("Mic", ["cam", "mic"])
        "; 'mic' differs from it in case alone"
    """
    for other in names:
        one, two = (unicodedata.normalize("NFC", each) for each in (name, other))
        if one == two and name != other:
            return (
                "; a name that looks the same is written with "
                f"{_form(other)} there and {_form(name)} here: write both in one form (NFC)"
            )
    for other in names:
        if other != name and other.casefold() == name.casefold():
            return f"; {_short(other)} differs from it in case alone"
    return ""


def _form(name: str) -> str:
    is_composed = unicodedata.is_normalized("NFC", name)
    return "composed letters (NFC)" if is_composed else "decomposed letters (NFD)"


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
