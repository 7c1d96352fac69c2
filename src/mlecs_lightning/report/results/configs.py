"""Configurations as leaves with dotted keys, and labels that tell them apart."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["flat", "in_words", "is_of_data", "told_apart"]

# What does not change what a run learns, and how far it has come.
_SAME = {
    *("seed_everything", "config", "ckpt_path", "warmup", "data.init_args.num_workers"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.callbacks", "trainer.logger", "trainer.name", "trainer.default_root_dir"),
    *("trainer.enable_checkpointing", "trainer.enable_progress_bar", "trainer.store"),
    *("trainer.save_top_k", "trainer.monitor", "trainer.monitor_mode"),
    *("trainer.allow_other_config", "trainer.rouge", "trainer.bertscore"),
    *("trainer.check_val_every_n_rounds", "trainer.limit_val_batches"),
    *("trainer.limit_eval_clients", "trainer.limit_test_clients"),
    *(
        "trainer.message_limits.max_bytes",
        "trainer.warmup_ckpt_path",
        "data.init_args.eval_batch_size",
    ),
}
_MOST_DIFFERENCES = 2  # in a label; more would not fit beside a number
_MOST_WORDS = 4  # in a cell of its own
_LONGEST = 24  # characters of a value in a label; the page has the whole value in another place

# What differs by the algorithm, which a row names anyway, and by the data, which all rows share.
_NAMED = ("algorithm.", "data.", "clients.")
_OF_TRAINING = ("algorithm.init_args.steps", "data.init_args.batch_size")
# Of a key in words: what says nothing, and what people call otherwise.
_SILENT = {"trainer", "data", "algorithm", "init_args", "class_path"}
_CALLED = {"max_rounds": "rounds", "batch_size": "batch", "model": ""}


def told_apart(
    bases: Sequence[str],
    contents: Sequence[Mapping[str, str]],
    within: Sequence[Any] | None = None,
    *,
    first_too: bool = False,
) -> list[str]:
    """Return labels: equal for equal contents, different for different ones.

    Args:
        bases: What a label begins with.
        contents: Flat configurations.
        within: Only those that are equal in this are compared; by default the bases.
        first_too: Whether the label of the first says its values, too; else it is the base, and the
            others say in what they differ from it.
    """
    groups: dict[Any, list[int]] = {}
    for i, key in enumerate(bases if within is None else within):
        groups.setdefault(key, []).append(i)
    labels = list(bases)
    for members in groups.values():
        first = contents[members[0]]
        taken: dict[str, Mapping[str, str]] = {}
        for i in members:
            ours = contents[i]
            rivals = [contents[j] for j in members] if first_too else [first]
            keys = [
                key
                for key in dict.fromkeys(key for each in (ours, *rivals) for key in each)
                if any(ours.get(key) != each.get(key) for each in rivals)
            ]
            label = _with_differences(bases[i], ours, keys) if keys else bases[i]
            number = 2
            while taken.setdefault(label, ours) != ours:
                label = f"{label.rpartition(' #')[0] or label} #{number}"
                number += 1
            labels[i] = label
    return labels


def _with_differences(base: str, ours: Mapping[str, str], keys: Sequence[str]) -> str:
    # What is off, or does nothing, says least.
    told = _without_arguments(keys)
    told.sort(key=lambda k: ours.get(k, "null") in ("null", "0", "0.0", "false"))
    words = [f"{_last_name(k)} {_short_value(ours, k)}" for k in told[:_MOST_DIFFERENCES]]
    more = ["..."] if len(told) > _MOST_DIFFERENCES else []
    return f"{base}: {', '.join(words + more)}"


def _without_arguments(keys: Sequence[str]) -> list[str]:
    """Return keys without the arguments of a class that differs, as they differ because it does.

    What stands in the place of a part, as null for no codec, is told with the part.
    """
    classes = [key.removesuffix("class_path") for key in keys if key.endswith(".class_path")]
    return [
        key
        for key in keys
        if not any(key.startswith(f"{each}init_args") or f"{key}." == each for each in classes)
    ]


def _last_name(key: str) -> str:
    """Return the last part of a key, and for a class the name of what it is for."""
    return key.removesuffix(".class_path").rpartition(".")[2]


def _short_value(leaves: Mapping[str, str], key: str) -> str:
    """Return a value for a label: of a long list or mapping only the number of entries."""
    leaf = leaves.get(key, "null")
    if key.endswith(".class_path"):
        return leaf.strip('"').rpartition(".")[2]
    if len(leaf) <= _LONGEST:
        return leaf
    content = json.loads(leaf)
    if isinstance(content, (list, dict)):
        return f"({len(content)} {'entry' if len(content) == 1 else 'entries'})"
    return textwrap.shorten(str(content), _LONGEST, placeholder="...") or "..."


def is_of_data(key: str) -> bool:
    """Return whether a key belongs to the setting: the data and the clients, batch size aside."""
    return key.startswith(("data", "clients")) and key != "data.init_args.batch_size"


def flat(tree: Mapping[str, Any]) -> dict[str, str]:
    """Return the leaves by dotted key as JSON, without those that change nothing."""
    leaves: dict[str, str] = {}

    def walk(key: str, node: Any) -> None:  # noqa: ANN401 - YAML
        if key in _SAME:
            return
        if isinstance(node, dict) and (node or not key):
            for name, below in node.items():
                walk(f"{key}.{name}" if key else str(name), below)
        else:
            leaves[key] = json.dumps(node, default=str)

    walk("", tree)
    return leaves


def in_words(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Say in short words how a training differs from another, algorithm, data and seed aside.

    Args:
        ours: A flat configuration.
        theirs: That of what it is compared with.

    Returns:
        Such as ``rounds 2 (6), edge optimizer lr 0.01 (0.001)``, in brackets what the other has;
        empty if nothing differs.
    """
    keys = [
        key
        for key in dict.fromkeys((*theirs, *ours))
        if ours.get(key, "null") != theirs.get(key, "null")
        and (not f"{key}.".startswith(_NAMED) or key.startswith(_OF_TRAINING))
    ]
    told = _without_arguments(keys)
    words = [f"{_called(k)} {_said(ours, k)} ({_said(theirs, k)})" for k in told[:_MOST_WORDS]]
    more = [f"{len(told) - _MOST_WORDS} more"] if len(told) > _MOST_WORDS else []
    return ", ".join(words + more)


def _called(key: str) -> str:
    parts = [_CALLED.get(part, part) for part in key.split(".") if part not in _SILENT]
    return " ".join(part.replace("_", " ") for part in parts if part)


def _said(leaves: Mapping[str, str], key: str) -> str:
    leaf = leaves.get(key, "null")
    if leaf == "null":
        return "none"
    return leaf.strip('"').rpartition(".")[2] if key.endswith("class_path") else leaf.strip('"')
