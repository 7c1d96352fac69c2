"""What differs between two nested settings, key by key."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["alike", "differences"]


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


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
