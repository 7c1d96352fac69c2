"""Splits the lines of a manifest that have no split of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mlecs_lightning.data.manifest.line import Line, Split
from mlecs_lightning.errors import ConfigurationError, FaultList

__all__ = ["DrawnSplit", "split_faults", "with_splits"]

DrawnSplit = dict[str, float | list[str]]
"""``public`` and ``test``, each a fraction of the groups or their names; and ``seed``."""

_KEY = "data.init_args.split"
_POOLS: tuple[Split, ...] = ("test", "public")


def split_faults(split: Mapping[str, Any] | None) -> list[str]:
    """Check the keys and the range of the fractions."""
    if split is None:
        return []
    faults = []
    if unknown := sorted(split.keys() - {*_POOLS, "seed"}):
        faults.append(f"{_KEY}: unknown keys {unknown}, known: public, test, seed")
    fractions = [0.0]
    for pool in _POOLS:
        value = split.get(pool, 0)
        if isinstance(value, list):
            continue
        if not 0 <= value < 1:
            faults.append(f"{_KEY}.{pool} must be a fraction in [0, 1) or a list of groups")
        fractions.append(value)
    if not sum(fractions) < 1:
        faults.append(f"{_KEY}: public and test leave no group to the clients, got {dict(split)}")
    seed = split.get("seed", 0)
    if not isinstance(seed, list) and (seed < 0 or seed != int(seed)):
        faults.append(f"{_KEY}.seed must be a whole number of at least 0, got {seed}")
    return faults


def with_splits(
    lines: Sequence[Line], labels: Sequence[int], split: Mapping[str, Any] | None
) -> list[Line]:
    """Give a split to each line that has none.

    A group goes as a whole to one side: where some of its lines have a split, to theirs. Fractions
    are of the groups, and at least one group each, unless they are 0. The groups are stratified by
    client or domain and by what most of their samples are about: the class, or without classes the
    target. Samples of a client never become public.

    Args:
        lines: All lines; those with a split of their own keep it.
        labels: The class of each line; all 0 without classes.
        split: What to draw, or the names of the groups; ``None`` returns the lines as they are.

    Raises:
        ConfigurationError: If a named group does not exist, is named twice, or belongs to a client
            and should be public, if lines of one group have several splits, or if a pool or the
            clients would have no group.
    """
    if split is None:
        return list(lines)
    strata = _strata(lines, labels)
    private = {line.group for line in lines if line.owner == "client"}
    place = _named(split, strata, private)
    fixed = _fixed(lines, place)
    loose = {x.group for x in lines if not x.has_split and (x.domain, x.group) not in fixed}
    place |= {group: side for (_, group), side in fixed.items() if group not in loose}
    rng = np.random.default_rng(int(split.get("seed", 0)))
    for pool in _POOLS:
        fraction = split.get(pool, 0)
        if isinstance(fraction, list) or not fraction:
            continue
        there = sum(place.get(group) == pool for group in strata)
        count = max(1, round(fraction * len(strata))) - there
        if count <= 0 or not strata:
            continue
        open_ = [g for g in strata if g not in place]
        free = [g for g in open_ if not (pool == "public" and g in private)]
        if not free:
            raise ConfigurationError(
                f"{_KEY}.{pool}: all groups belong to clients, and a client's samples are never "
                "made public: name a `domain` instead of a `client`, or write the public lines as "
                "split public"
                if open_
                else f"{_KEY}.{pool}: no group is left to draw from: all have a split already"
            )
        place |= dict.fromkeys(_drawn(free, strata, min(count, len(free)), rng), pool)
    if strata and all(place.get(group, "train") != "train" for group in strata):
        raise ConfigurationError(
            f"{_KEY}: of {len(strata)} groups none is left to the clients; lower public or test"
        )
    return [_placed(line, place, fixed) for line in lines]


def _placed(line: Line, place: Mapping[str, Split], fixed: Mapping[tuple[str, str], Split]) -> Line:
    if line.has_split:
        return line
    side = fixed.get((line.domain, line.group)) or place.get(line.group, "train")
    return replace(line, split=side, has_split=True)


def _named(
    split: Mapping[str, Any], groups: Mapping[str, object], private: set[str]
) -> dict[str, Split]:
    """Return the pool of each group that the split names."""
    faults, place = FaultList(), dict[str, Split]()
    for pool in _POOLS:
        names = split.get(pool)
        if not isinstance(names, list):
            continue
        if unknown := [name for name in names if name not in groups]:
            faults.append(f"{_KEY}.{pool}: no line without a split is of the groups {unknown}")
        if twice := [name for name in names if name in place]:
            faults.append(f"{_KEY}: {twice} are both in test and in public")
        if pool == "public" and (owned := sorted(private & set(names))):
            faults.append(f"{_KEY}.public: the groups {owned} belong to clients")
        place |= dict.fromkeys(names, pool)
    faults.raise_any()
    return place


def _fixed(lines: Sequence[Line], named: Mapping[str, Split]) -> dict[tuple[str, str], Split]:
    """Return the split of each group of a client or domain that has lines with one.

    Its other lines follow. Lines of another client or domain are another recording, even if its
    name is the same.
    """
    faults, place = FaultList(), dict[tuple[str, str], Split]()
    drawn = {(line.domain, line.group) for line in lines if not line.has_split}
    for line in lines:
        new = line.split == "test" and not line.targets  # to be predicted, and never scored
        recording = line.domain, line.group
        if not line.has_split or new or recording not in drawn:
            continue
        other = named.get(line.group) or place.setdefault(recording, line.split)
        if other != line.split:
            faults.append(
                f"{line.where}: split {line.split}, but other lines of group {line.group!r} are of "
                f"split {other}: a group goes as a whole to one side"
            )
    faults.raise_any()
    return place


def _strata(lines: Sequence[Line], labels: Sequence[int]) -> dict[str, tuple[str, str]]:
    """Return the stratum of each group without a split: its client or domain, and its content."""
    has_classes = len(set(labels)) > 1
    members: dict[str, list[tuple[str, str]]] = {}
    for line, label in zip(lines, labels, strict=True):
        if not line.has_split:
            content = str(label) if has_classes else "".join(line.targets[:1])
            members.setdefault(line.group, []).append((line.domain, content))
    return {group: Counter(each).most_common(1)[0][0] for group, each in members.items()}


def _drawn(
    free: Sequence[str],
    strata: Mapping[str, tuple[str, str]],
    count: int,
    rng: np.random.Generator,
) -> list[str]:
    """Draw groups at even distances from a list that is sorted by stratum, shuffled within each.

    So every stratum gives its share, to within one group.
    """
    sizes = Counter(strata[group] for group in free)

    def place_of(group: str) -> tuple[str, str]:
        domain, content = strata[group]
        # Contents that no other group shares would only sort the groups by their text.
        return domain, content if sizes[strata[group]] > 1 else ""

    shuffled = [free[i] for i in rng.permutation(len(free))]
    ordered = sorted(shuffled, key=place_of)
    distance = len(ordered) / count
    start = rng.random()
    return [ordered[int((i + start) * distance)] for i in range(count)]
