import json
from pathlib import Path

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


def test_scene_must_go_with_the_split() -> None:
    with pytest.raises(ValueError, match=r"test_scene must be one of .*'living_dark'.* got None"):
        split_sequences("leave_one_scene_out")
    with pytest.raises(ValueError, match="needs split: leave_one_scene_out, got"):
        split_sequences("suggested", "bedroom")
    with pytest.raises(ValueError, match="got 'random'"):
        split_sequences("random")  # type: ignore[arg-type]
