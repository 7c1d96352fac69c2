"""Configurations as leaves with dotted keys, and labels that tell them apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["flat", "told_apart"]

# What does not change what a run learns, and how far it has come.
_SAME = {
    *("seed_everything", "config", "ckpt_path", "warmup", "data.init_args.num_workers"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.callbacks", "trainer.logger", "trainer.name", "trainer.default_root_dir"),
    *("trainer.enable_checkpointing", "trainer.enable_progress_bar", "trainer.store"),
    *("trainer.save_top_k", "trainer.monitor", "trainer.monitor_mode"),
    *("trainer.allow_other_config", "trainer.bertscore"),
    *("trainer.check_val_every_n_rounds", "trainer.limit_val_batches"),
    *("trainer.max_message_bytes", "trainer.warmup_ckpt_path"),
}
_MOST_DIFFERENCES = 2  # in a label; more would not fit beside a number


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
    told = sorted(keys, key=lambda k: ours.get(k, "null") in ("null", "0", "0.0", "false"))
    words = [f"{k.rpartition('.')[2]} {ours.get(k, 'null')}" for k in told[:_MOST_DIFFERENCES]]
    more = ["..."] if len(keys) > _MOST_DIFFERENCES else []
    return f"{base}: {', '.join(words + more)}"


def flat(tree: Mapping[str, Any]) -> dict[str, str]:
    """Return the leaves by dotted key as JSON, without those that change nothing."""
    leaves: dict[str, str] = {}

    def walk(key: str, node: Any) -> None:  # noqa: ANN401 - YAML
        if key in _SAME:
            return
        if isinstance(node, dict) and node:
            for name, below in node.items():
                walk(f"{key}.{name}" if key else str(name), below)
        else:
            leaves[key] = json.dumps(node, default=str)

    walk("", tree)
    return leaves
