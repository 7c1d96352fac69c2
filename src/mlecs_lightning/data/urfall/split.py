"""Which UR Fall sequence was filmed where, and who may train on it.

The data set comes with neither. The scenes were told apart by the background of the videos; the
split is drawn by sequence, stratified by scene and by whether somebody lies on the floor.
"""

from __future__ import annotations

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
"""Scene of each of the 70 sequences."""

EXCLUDED = ("fall-10",)
"""Sequences left out: the accelerometer of fall-10 is 1.3 s out of step with its video."""

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
"""How the sequences are dealt: a name, ``{seed: n}``, or ``{test: [...], public: [...]}``."""


def split_sequences(split: Split, test_scene: str | None = None) -> SequenceSplit:
    """Say which sequences are public, private and for test.

    Args:
        split: ``suggested`` tests on 14 sequences of all scenes, 14 are public and 41 private.
            ``leave_one_scene_out`` tests on all sequences of one scene; of the others the 14 public
            ones stay public and the rest is private. ``{seed: n}`` draws a split like the suggested
            one: a fifth of each scene's sequences for test, a fifth public, at least one each.
            ``{test: [...], public: [...]}`` names sequences; the rest is private.
        test_scene: The scene left out, with ``leave_one_scene_out`` only.

    Raises:
        ValueError: If the split is unknown or the scene does not go with it.
    """
    names = [name for name in SCENES if name not in EXCLUDED]
    if test_scene is not None and split != "leave_one_scene_out":
        raise ValueError(
            "data.init_args.test_scene goes with split: leave_one_scene_out only, "
            f"got {test_scene!r} with split: {split}"
        )
    if isinstance(split, dict):
        test, public = _drawn(split, names) if split.keys() == {"seed"} else _named(split, names)
    elif split == "suggested":
        test, public = set(_TEST), set(_PUBLIC)
    elif split == "leave_one_scene_out":
        scenes = list(dict.fromkeys(SCENES.values()))
        if test_scene not in scenes:
            raise ValueError(
                f"data.init_args.test_scene must be one of {scenes} "
                f"with split: leave_one_scene_out, got {test_scene!r}"
            )
        test = {name for name in names if SCENES[name] == test_scene}
        public = set(_PUBLIC)
    else:
        raise ValueError(
            "data.init_args.split must be suggested, leave_one_scene_out, {seed: NUMBER} or "
            f"{{test: [...], public: [...]}}, got {split!r}"
        )
    rest = [name for name in names if name not in test]
    return SequenceSplit(
        public=tuple(name for name in rest if name in public),
        private=tuple(name for name in rest if name not in public),
        test=tuple(name for name in names if name in test),
    )


def _drawn(split: dict[str, int | list[str]], names: list[str]) -> tuple[set[str], set[str]]:
    """Draw sequences for test and public ones, scene by scene."""
    seed = split["seed"]
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"data.init_args.split.seed must be a number of at least 0, got {seed!r}")
    rng = np.random.default_rng(seed)
    test, public = set[str](), set[str]()
    for scene in dict.fromkeys(SCENES.values()):
        order = rng.permutation([name for name in names if SCENES[name] == scene]).tolist()
        share = max(1, round(_SHARE * len(order)))
        test |= set(order[:share])
        public |= set(order[share : 2 * share])
    return test, public


def _named(split: dict[str, int | list[str]], names: list[str]) -> tuple[set[str], set[str]]:
    """Take the sequences that are named.

    Raises:
        ValueError: If they make no split; all that is wrong in one message.
    """
    key = "data.init_args.split"
    faults = FaultList()
    chosen = dict[str, set[str]]()
    for pool in ("test", "public"):
        wanted = split.get(pool)
        if not isinstance(wanted, list) or not wanted:
            faults.append(f"{key}.{pool}: expected a list of sequences, got {wanted!r}")
            continue
        chosen[pool] = set(wanted)
        if unknown := sorted(chosen[pool] - set(names)):
            faults.append(f"{key}.{pool}: {unknown} are none of the sequences {names}")
    if unknown := sorted(split.keys() - {"test", "public"}):
        faults.append(f"{key}: unknown keys {unknown}, known: seed; or test and public")
    if len(chosen) == 2:
        if both := sorted(chosen["test"] & chosen["public"]):
            faults.append(f"{key}: {both} are in test and in public")
        if not set(names) - chosen["test"] - chosen["public"]:
            faults.append(f"{key}: no sequence is left for the clients")
    faults.raise_any()
    return chosen["test"], chosen["public"]
