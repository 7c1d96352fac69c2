import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlecs_lightning.data.manifest.line import Line
from mlecs_lightning.data.manifest.split import split_faults, with_splits
from mlecs_lightning.errors import ConfigurationError


def line(n: int, **values: Any) -> Line:
    common = {
        "where": f"m:{n}",
        "root": Path(),
        "id": str(n),
        "split": "train",
        "owner": "domain",
        "domain": ("attic", "hall")[n % 2],
        "group": str(n),
        "modalities": {},
        "instruction": None,
        "targets": ("up" if n % 6 < 2 else "down",),
        "has_split": False,
    }
    return Line(**{**common, **values})


LINES = [line(n) for n in range(120)]


def placed(lines: list[Line], **split: Any) -> list[Line]:
    assert split_faults(split) == []
    return with_splits(lines, [0] * len(lines), split)


def test_fractions_are_stratified_by_domain_and_target_and_drawn_by_the_seed() -> None:
    drawn = placed(LINES, public=0.3, test=0.1)
    counts = Counter((each.split, each.domain, each.targets[0]) for each in drawn)
    # 120 lines: a third "up", half of each domain. Each stratum gives its share, to within one.
    for domain in ("attic", "hall"):
        for target, size in (("up", 20), ("down", 40)):
            assert abs(counts["test", domain, target] - 0.1 * size) <= 1
            assert abs(counts["public", domain, target] - 0.3 * size) <= 1
    assert Counter(each.split for each in drawn) == {"train": 72, "public": 36, "test": 12}
    assert drawn == placed(LINES, public=0.3, test=0.1, seed=0)
    assert drawn != placed(LINES, public=0.3, test=0.1, seed=1)


def test_strata_of_free_texts_do_not_decide() -> None:
    free = [line(n, targets=(f"sentence {n:03d}",), domain="hall") for n in range(120)]
    tests = [
        [each.id for each in placed(free, public=0.1, test=0.1, seed=s) if each.split == "test"]
        for s in range(2)
    ]
    assert [len(each) for each in tests] == [12, 12]
    distances = {int(b) - int(a) for a, b in itertools.pairwise(tests[0])}
    assert len(distances) > 1, "at random, not every tenth line"
    assert tests[0] != tests[1]


def test_a_group_stays_whole_and_lines_with_a_split_keep_it() -> None:
    grouped = [line(n, group=f"g{n // 4}") for n in range(120)]
    own = [line(n, split="test", has_split=True, group="g0") for n in range(200, 210)]
    drawn = placed([*grouped, *own], public=0.2, test=0.2)
    sides: dict[str, set[str]] = {}
    for each in drawn[:120]:
        sides.setdefault(each.group, set()).add(each.split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert Counter(next(iter(splits)) for splits in sides.values()) == {
        "train": 18,
        "public": 6,
        "test": 6,
    }
    assert [each.split for each in drawn[120:]] == ["test"] * 10
    assert sides["g0"] == {"test"}  # where its other lines are


def test_lines_of_one_group_with_several_splits_are_refused() -> None:
    own = [line(n, split=s, has_split=True, group="g0") for n, s in ((200, "test"), (202, "train"))]
    with pytest.raises(ConfigurationError, match=r"split train, but .*'g0' are of split test"):
        placed([line(0, group="g0"), *LINES, *own], test=0.2)
    with pytest.raises(ConfigurationError, match=r"split test, but .*'g0' are of split public"):
        placed([line(0, group="g0"), *LINES, own[0]], public=["g0"])
    new = line(200, split="test", has_split=True, group="g0", targets=())  # to be predicted
    elsewhere = line(201, split="test", has_split=True, group="g0")  # of another domain
    unlabelled = line(202, split="public", has_split=True, group="g0", targets=())
    drawn = placed([line(0, group="g0"), *LINES[1:], new, elsewhere, unlabelled], test=0.2)
    assert [each.split for each in (drawn[0], *drawn[-3:])] == ["public", "test", "test", "public"]


def test_where_all_groups_have_a_split_nothing_is_drawn() -> None:
    lines = [line(n, group=f"g{n}") for n in (0, 2)]
    own = [
        line(n + 10, group=f"g{n}", split=split, has_split=True)
        for n, split in ((0, "test"), (2, "train"))
    ]
    assert [each.split for each in placed([*lines, *own], test=0.2)] == ["test", "train"] * 2
    with pytest.raises(ConfigurationError, match="public: no group is left to draw from"):
        placed([*lines, *own], test=0.2, public=0.2)


def test_groups_can_be_named() -> None:
    drawn = placed(LINES, public=["1", "2"], test=["7"])
    found = {each.id: each.split for each in drawn if each.split != "train"}
    assert found == {"1": "public", "2": "public", "7": "test"}
    mixed = placed(LINES, public=0.1, test=["7"])
    assert Counter(each.split for each in mixed) == {"train": 107, "public": 12, "test": 1}


def test_samples_of_clients_never_become_public() -> None:
    owned = [line(n, owner="client") for n in range(20)]
    assert {each.split for each in placed(owned, test=0.2)} == {"train", "test"}
    with pytest.raises(ConfigurationError, match="name a `domain` instead of a `client`"):
        placed(owned, public=0.2)
    with pytest.raises(ConfigurationError, match=r"public: the groups \['3'\] belong to clients"):
        placed(owned, public=["3"])


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"public": ["x"]}, r"public: no line without a split is of the groups \['x'\]"),
        ({"public": ["1"], "test": ["1"]}, r"\['1'\] are both in test and in public"),
        ({"public": [str(n) for n in range(120)]}, "none is left to the clients"),
    ],
)
def test_groups_that_make_no_split_are_refused(split: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        placed(LINES, **split)


@pytest.mark.parametrize(
    ("split", "fault"),
    [
        ({"dev": 0.1}, "unknown keys ['dev'], known: public, test, seed"),
        ({"public": 1.5}, "public must be a fraction in [0, 1) or a list of groups"),
        ({"public": 0.5, "test": 0.5}, "public and test leave no group to the clients"),
        ({"test": 0.5, "seed": 0.5}, "seed must be a whole number of at least 0, got 0.5"),
    ],
)
def test_values_out_of_range_are_named(split: dict[str, Any], fault: str) -> None:
    assert any(fault in each for each in split_faults(split))


def test_a_recording_of_the_same_name_elsewhere_does_not_follow() -> None:
    own = line(200, group="1", split="public", has_split=True)
    drawn = placed([own, line(0, group="1"), line(1, group="1"), *LINES[2:]], test=0.1)
    assert [each.domain for each in drawn[:3]] == ["attic", "attic", "hall"]
    assert drawn[1].split == "public"
    assert drawn[2].split != "public"
