"""Configuration keys and class paths of earlier versions, and what replaces them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = [
    "MOVED_CLASSES",
    "RENAMED_KEYS",
    "renamed_key_faults",
    "with_present_classes",
    "with_present_keys",
]

RENAMED_KEYS = {
    "trainer.client_fraction": "trainer.participation.fraction",
    "trainer.min_clients": "trainer.participation.min_clients",
    "trainer.max_update_norm": "trainer.update_limits.max_norm",
    "trainer.max_update_ratio": "trainer.update_limits.max_ratio",
    "trainer.large_update": "trainer.update_limits.on_excess",
    "trainer.max_message_norm": "trainer.message_limits.max_norm",
    "trainer.max_message_bytes": "trainer.message_limits.max_bytes",
}
"""For each old key, joined by dots, the present one. The values mean the same."""

MOVED_CLASSES = {"mlecs_lightning.federated.DWC": "mlecs_lightning.wire.DWC"}
"""For each class path that an earlier ``config.yaml`` may hold, the present one."""


def renamed_key_faults(keys: Iterable[str]) -> list[str]:
    """Return one line for each key that has a new name, naming both.

    Args:
        keys: Keys joined by dots. Keys that were not renamed are ignored.
    """
    return [f"{key} is now {RENAMED_KEYS[key]}" for key in keys if key in RENAMED_KEYS]


def with_present_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration of an earlier version under the present keys.

    Args:
        config: A nested configuration; it is not changed.
    """
    present = dict(config)
    for old, new in RENAMED_KEYS.items():
        section, _, old_name = old.partition(".")
        _, group, new_name = new.split(".")
        values = present.get(section)
        if not isinstance(values, Mapping) or old_name not in values:
            continue
        kept = {key: value for key, value in values.items() if key != old_name}
        kept[group] = {**(kept.get(group) or {}), new_name: values[old_name]}
        present[section] = kept
    return with_present_classes(present)


def with_present_classes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in which moved classes are named by their present path.

    Args:
        config: A nested configuration; it is not changed.
    """
    present: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            present[key] = with_present_classes(value)
        elif key == "class_path" and isinstance(value, str):
            present[key] = MOVED_CLASSES.get(value, value)
        else:
            present[key] = value
    return present
