import json
import re
from pathlib import Path
from typing import Any

import pytest

from mlecs_lightning.data.urfall.split import EXCLUDED, SCENES, split_sequences


def test_scenes_and_split_are_those_of_the_shared_files(urfd_root: Path) -> None:
    suggested = json.loads((urfd_root / "suggested_split.json").read_text())
    split = split_sequences("suggested")
    assert {pool: list(getattr(split, pool)) for pool in split._fields} == {
        pool: suggested[pool] for pool in split._fields
    }
    assert list(EXCLUDED) == suggested["excluded"]
    assert json.loads((urfd_root / "scenes.json").read_text()) == SCENES


def test_suggested_split_has_the_documented_sizes() -> None:
    split = split_sequences("suggested")
    assert [len(pool) for pool in split] == [14, 41, 14]
    assert len({name for pool in split for name in pool}) == 69


@pytest.mark.parametrize(
    ("scene", "sizes"), [("bedroom", [13, 50, 6]), ("office_A1", [12, 46, 11])]
)
def test_leave_one_scene_out_tests_on_that_scene_alone(scene: str, sizes: list[int]) -> None:
    split = split_sequences("leave_one_scene_out", scene)
    assert [len(pool) for pool in split] == sizes
    assert {SCENES[name] for name in split.test} == {scene}
    assert scene not in {SCENES[name] for name in split.public + split.private}
    # Public stays public, whatever scene is left out: runs of several scenes share the server.
    assert set(split.public) < set(split_sequences("suggested").public)


def test_drawn_split_has_every_scene_in_every_pool() -> None:
    splits = [split_sequences({"seed": seed}) for seed in range(4)]
    assert len(set(splits)) == 4
    assert splits[2] == split_sequences({"seed": 2})
    for split in splits:
        names = [name for pool in split for name in pool]
        assert sorted(names) == sorted(set(SCENES) - set(EXCLUDED)), "each sequence once"
        assert all({SCENES[n] for n in pool} == set(SCENES.values()) for pool in split)
        assert [len(pool) for pool in split] == [13, 43, 13]


def test_named_sequences_make_a_split() -> None:
    split = split_sequences({"test": ["fall-01", "adl-02"], "public": ["adl-01"]})
    assert split.test == ("adl-02", "fall-01")
    assert split.public == ("adl-01",)
    assert len(split.private) == 66


@pytest.mark.parametrize(
    ("split", "faults"),
    [
        ({"seed": -1}, ["seed must be a number of at least 0, got -1"]),
        ({"seed": "two"}, ["seed must be a number of at least 0, got 'two'"]),
        ({"test": ["fall-01"]}, [r"split.public: expected a list of sequences, got None"]),
        (
            {"test": ["fall-10", "adl-01"], "public": ["adl-01"], "seed": 1},
            [
                r"\['fall-10'\] are not among",
                r"\['seed'\], known",
                r"\['adl-01'\] are both in test and",
            ],
        ),
        (
            {"test": sorted(set(SCENES) - {"fall-10", "adl-01"}), "public": ["adl-01"]},
            ["no sequence is left for the clients"],
        ),
    ],
)
def test_split_that_is_none_says_all_that_is_wrong(split: Any, faults: list[str]) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=faults[0]) as error:
        split_sequences(split)
    assert [fault for fault in faults if not re.search(fault, str(error.value))] == []


def test_scene_must_go_with_the_split() -> None:
    with pytest.raises(ValueError, match=r"test_scene must be one of .*'living_dark'.* got None"):
        split_sequences("leave_one_scene_out")
    with pytest.raises(ValueError, match="needs split: leave_one_scene_out, got"):
        split_sequences("suggested", "bedroom")
    with pytest.raises(ValueError, match="got 'random'"):
        split_sequences("random")  # type: ignore[arg-type]
