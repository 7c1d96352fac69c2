"""Scenes of the UR Fall sequences, and their split into public, private and test.

The data set defines neither (our choice). The scenes were identified by the background of the
videos; the split is drawn by sequence, stratified by scene and by whether somebody lies on the
floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from mlecs_lightning.errors import FaultList

__all__ = ["EXCLUDED", "SCENES", "SceneSplit", "SequenceSplit", "Split", "split_sequences"]

SceneSplit = Literal["suggested", "leave_one_scene_out"]

_FILMED = (
    ("adl", 1, 11, "living_bright"),
    ("adl", 12, 23, "living_dark"),
    ("adl", 24, 29, "corner_empty"),
    ("adl", 30, 30, "bedroom"),
    ("adl", 31, 35, "office_B"),
    ("adl", 36, 40, "bedroom"),
    ("fall", 1, 12, "office_A1"),
    ("fall", 13, 30, "office_A2"),
)
SCENES = {
    f"{kind}-{run:02d}": scene
    for kind, first, last, scene in _FILMED
    for run in range(first, last + 1)
}
"""The scene of each of the 70 sequences."""

EXCLUDED = ("fall-10",)
"""Sequences left out: the accelerometer of fall-10 is 1.3 s off its video."""

_TEST = (
    *("adl-04", "adl-05", "adl-13", "adl-15", "adl-23", "adl-28", "adl-35", "adl-38"),
    *("fall-01", "fall-12", "fall-16", "fall-23", "fall-25", "fall-28"),
)
_PUBLIC = (
    *("adl-03", "adl-06", "adl-14", "adl-16", "adl-21", "adl-29", "adl-33", "adl-36"),
    *("fall-04", "fall-09", "fall-22", "fall-24", "fall-26", "fall-27"),
)


_SHARE = 0.2
"""Share of a scene's sequences that a drawn split tests on, and that it makes public."""


class SequenceSplit(NamedTuple):
    """The sequences of each pool, in the order of `SCENES`."""

    public: tuple[str, ...]
    private: tuple[str, ...]
    test: tuple[str, ...]


Split = SceneSplit | dict[str, int | list[str]]
"""How the sequences are split: a name, ``{seed: n}``, or ``{test: [...], public: [...]}``."""


def split_sequences(split: Split, test_scene: str | None = None) -> SequenceSplit:
    """Split the sequences into public, private and test.

    Args:
        split: ``suggested`` uses sequences of all scenes: 14 for testing, 14 public, 41 private.
            ``leave_one_scene_out`` tests on all sequences of one scene; the rest keep their place,
            except that the test sequences of other scenes become private. (The data name no
            persons, so the scene is all that can be left out.) ``{seed: n}`` draws a split like the
            suggested one: a fifth of the sequences of each scene for testing, a fifth public, at
            least one each. ``{test: [...], public: [...]}`` names the sequences; the rest is
            private.
        test_scene: The scene to leave out, with ``leave_one_scene_out`` only.

    Raises:
        ValueError: If the split is unknown or ``test_scene`` does not fit it.
    """
    test, public = _test_and_public(split, test_scene)
    pools: dict[str, list[str]] = {"public": [], "private": [], "test": []}
    for name in _usable():
        if name in test:
            pools["test"].append(name)
        elif name in public:
            pools["public"].append(name)
        else:
            pools["private"].append(name)
    return SequenceSplit(*map(tuple, pools.values()))


def _usable() -> list[str]:
    return [name for name in SCENES if name not in EXCLUDED]


def _test_and_public(split: Split, test_scene: str | None) -> tuple[set[str], set[str]]:
    if test_scene is not None and split != "leave_one_scene_out":
        raise ValueError(
            "data.init_args.test_scene needs split: leave_one_scene_out, "
            f"got {test_scene!r} with split: {split}"
        )
    match split:
        case {"seed": seed} if len(split) == 1:
            return _drawn(seed)
        case dict():
            return _named(split)
        case "suggested":
            return set(_TEST), set(_PUBLIC)
        case "leave_one_scene_out":
            scenes = list(dict.fromkeys(SCENES.values()))
            if test_scene not in scenes:
                raise ValueError(
                    f"data.init_args.test_scene must be one of {scenes} "
                    f"with split: leave_one_scene_out, got {test_scene!r}"
                )
            return {name for name, scene in SCENES.items() if scene == test_scene}, set(_PUBLIC)
        case _:
            raise ValueError(
                "data.init_args.split must be suggested, leave_one_scene_out, {seed: NUMBER} or "
                f"{{test: [...], public: [...]}}, got {split!r}"
            )


def _drawn(seed: object) -> tuple[set[str], set[str]]:
    """Draw test and public sequences, scene by scene.

    Raises:
        ValueError: If the seed is not a number of at least 0.
    """
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"data.init_args.split.seed must be a number of at least 0, got {seed!r}")
    rng = np.random.default_rng(seed)
    test, public = set[str](), set[str]()
    for scene in dict.fromkeys(SCENES.values()):
        order = rng.permutation([name for name in _usable() if SCENES[name] == scene]).tolist()
        share = max(1, round(_SHARE * len(order)))
        test |= set(order[:share])
        public |= set(order[share : 2 * share])
    return test, public


def _named(split: Mapping[str, int | list[str]]) -> tuple[set[str], set[str]]:
    """Return the test and public sequences that a split names.

    Raises:
        ValueError: If they do not make a split; all faults in one message.
    """
    key, names = "data.init_args.split", _usable()
    faults = FaultList()
    pools = dict[str, set[str]]()
    for pool in ("test", "public"):
        wanted = split.get(pool)
        if not isinstance(wanted, list) or not wanted:
            faults.append(f"{key}.{pool}: expected a list of sequences, got {wanted!r}")
            continue
        pools[pool] = set(wanted)
        if unknown := sorted(pools[pool] - set(names)):
            faults.append(f"{key}.{pool}: {unknown} are not among the sequences {names}")
    if unknown := sorted(split.keys() - {"test", "public"}):
        faults.append(f"{key}: unknown keys {unknown}, known: seed; or test and public")
    if len(pools) == 2:
        if both := sorted(pools["test"] & pools["public"]):
            faults.append(f"{key}: {both} are both in test and in public")
        if not set(names) - pools["test"] - pools["public"]:
            faults.append(f"{key}: no sequence is left for the clients")
    faults.raise_any()
    return pools["test"], pools["public"]
