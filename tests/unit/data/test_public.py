import itertools

import numpy as np
import pytest
import torch

from mlecs_lightning.data.public import Labelled, Without, lacking, partly_labelled
from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.errors import ConfigurationError

CLASSES = ("up", "down")


def table() -> SampleTable:
    """40 recordings of two samples, one of each class; 20 recordings in each of two rooms."""
    n = 80
    return SampleTable(
        ids=tuple(f"{i:02d}" for i in range(n)),
        modalities=("tilt",),
        inputs={"tilt": torch.arange(1.0, n + 1).view(n, 1)},
        present=torch.ones(n, 1, dtype=torch.bool),
        instructions=("which way ?",) * n,
        targets=tuple(CLASSES[i % 2] for i in range(n)),
        labels=torch.arange(n) % 2,
        domains=tuple(("hall", "attic")[i // 2 % 2] for i in range(n)),
        groups=tuple(f"rec{i // 2:02d}" for i in range(n)),
    )


def known(labelled: Labelled) -> dict[tuple[str, str], int]:
    """Count the samples with a target by domain and class."""
    hidden = partly_labelled(table(), labelled, seed=3, classes=CLASSES)
    assert hidden.ids == table().ids
    assert torch.equal(hidden.inputs["tilt"], table().inputs["tilt"])
    rows = zip(hidden.domains, hidden.labels.tolist(), hidden.targets, strict=True)
    counts = {(domain, name): 0 for domain in ("hall", "attic") for name in CLASSES}
    for domain, label, target in rows:
        counts[domain, CLASSES[label]] += bool(target)
    return counts


def test_fractions_of_classes_and_domains_leave_all_others_as_they_are() -> None:
    assert known({"attic": 0.25}) == {
        ("hall", "up"): 20,
        ("hall", "down"): 20,
        ("attic", "up"): 5,
        ("attic", "down"): 5,
    }
    of_class = known({"up": 0.5})
    assert of_class["hall", "up"] + of_class["attic", "up"] == 20
    assert of_class["hall", "down"] == of_class["attic", "down"] == 20
    assert known({"up": 0, "attic": 0}) == {
        ("hall", "up"): 0,
        ("hall", "down"): 20,
        ("attic", "up"): 0,
        ("attic", "down"): 0,
    }
    assert known({"up": 1.0, "hall": 1}) == known(1.0)


def test_a_smaller_fraction_of_a_class_is_contained_in_a_larger_one() -> None:
    sets = []
    for fraction in (0.0, 0.1, 0.4, 0.8, 1.0):
        hidden = partly_labelled(table(), {"down": fraction}, seed=1, classes=CLASSES)
        sets.append({i for i, t in zip(hidden.ids, hidden.targets, strict=True) if t})
    assert all(small < large for small, large in itertools.pairwise(sets))


def test_a_fraction_is_of_what_has_a_target() -> None:
    whole = table()
    few = whole.with_targets(dict.fromkeys(whole.ids[4:], ""))
    for seed in range(10):
        assert int(partly_labelled(few, 0.05, seed=seed).labelled().sum()) >= 1
    nothing = whole.with_targets(dict.fromkeys(whole.ids, ""))
    with pytest.raises(ConfigurationError, match="leaves no public sample with a target"):
        partly_labelled(nothing, 0.5, seed=0)


@pytest.mark.parametrize(
    ("labelled", "message"),
    [
        ({"sideways": 0.5}, r"'sideways' is neither a class nor a domain.*\['up', 'down'\]"),
        ({"up": 0, "down": 0}, "leaves no public sample with a target"),
    ],
)
def test_fractions_that_fit_nothing_are_refused(labelled: Labelled, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        partly_labelled(table(), labelled, seed=0, classes=CLASSES)
    with pytest.raises(ConfigurationError, match="both a class and a domain"):
        partly_labelled(table(), {"hall": 0.5}, seed=0, classes=("hall", "down"))


def test_left_out_classes_and_domains_are_gone_and_unlabelled_samples_stay() -> None:
    whole = table().with_targets({"00": ""})  # of class 0, as every sample without a target
    left = lacking(whole, Without(classes=("up",)), CLASSES)
    assert set(left.targets) == {"down", ""}
    assert len(left) == 41
    left = lacking(whole, Without(("down",), ("attic",)), CLASSES)
    assert {*left.domains} == {"hall"}
    assert np.unique(left.labels).tolist() == [0]
    assert len(left) == 20
    with pytest.raises(ConfigurationError, match=r"public_without.classes: \['left'\] are not"):
        lacking(whole, Without(("left",)), CLASSES)
