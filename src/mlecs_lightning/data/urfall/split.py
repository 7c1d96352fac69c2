"""Scenes of the UR Fall sequences, and their split into public, private and test.

The data set defines neither (our choice). The scenes were identified by the background of the
videos; the split is drawn by sequence, stratified by scene and by whether somebody lies on the
floor.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["EXCLUDED", "SCENES", "SceneSplit", "SequenceSplit", "split_sequences"]

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


class SequenceSplit(NamedTuple):
    """The sequences of each pool, in the order of `SCENES`."""

    public: tuple[str, ...]
    private: tuple[str, ...]
    test: tuple[str, ...]


def split_sequences(split: SceneSplit, test_scene: str | None = None) -> SequenceSplit:
    """Split the sequences into public, private and test.

    Args:
        split: ``suggested`` uses sequences of all scenes: 14 for testing, 14 public, 41 private.
            ``leave_one_scene_out`` tests on all sequences of one scene; the rest keep their place,
            except that the test sequences of other scenes become private.
        test_scene: The scene to leave out, with ``leave_one_scene_out`` only.

    Raises:
        ValueError: If the split is unknown or ``test_scene`` does not fit it.
    """
    test = _test_sequences(split, test_scene)
    pools: dict[str, list[str]] = {"public": [], "private": [], "test": []}
    for name in SCENES:
        if name in EXCLUDED:
            continue
        if name in test:
            pools["test"].append(name)
        elif name in _PUBLIC:
            pools["public"].append(name)
        else:
            pools["private"].append(name)
    return SequenceSplit(*map(tuple, pools.values()))


def _test_sequences(split: SceneSplit, test_scene: str | None) -> tuple[str, ...]:
    match split:
        case "suggested":
            if test_scene is not None:
                raise ValueError(
                    "data.init_args.test_scene needs split: leave_one_scene_out, "
                    f"got {test_scene!r} with split: suggested"
                )
            return _TEST
        case "leave_one_scene_out":
            scenes = list(dict.fromkeys(SCENES.values()))
            if test_scene not in scenes:
                raise ValueError(
                    f"data.init_args.test_scene must be one of {scenes} "
                    f"with split: leave_one_scene_out, got {test_scene!r}"
                )
            return tuple(name for name, scene in SCENES.items() if scene == test_scene)
        case _:
            raise ValueError(
                f"data.init_args.split must be suggested or leave_one_scene_out, got {split!r}"
            )
