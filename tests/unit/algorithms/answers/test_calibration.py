import pytest
import torch

from mlecs_lightning.algorithms.answers import Labels
from mlecs_lightning.algorithms.answers.calibration import calibrated, rightness
from mlecs_lightning.metrics import ReferencedText


def test_rightness_is_what_is_beyond_chance_by_hand() -> None:
    """F1 of the targets "a one" and "a two" is 1/2: that much is chance."""
    found = rightness(["a one", "a one", "a", "six"], ["a one", "a two", "a one", "a two"])
    # The third: F1 of "a" and "a one" is 2/3, so (2/3 - 1/2) / (1/2).
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 1 / 3, 0.0], dtype=torch.float64))


def test_a_target_is_met_by_each_of_its_references() -> None:
    first = ReferencedText("a one", ["a one", "x six"])  # F1 of "a two" and "x six" is 0
    found = rightness(["x six", "a two", "a one"], [first, first, "a two"])
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))


def test_references_of_one_target_are_not_two_targets() -> None:
    both = [ReferencedText(text, ["yes", "sure"]) for text in ("yes", "sure")]
    found = rightness(["yes indeed", "no"], both)
    torch.testing.assert_close(found, torch.tensor([2 / 3, 0.0], dtype=torch.float64))


def test_one_target_leaves_nothing_to_chance() -> None:
    assert rightness(["yes", "no"], ["yes", "yes"]).tolist() == [1.0, 0.0]


def said(count: int, right: float, *, sure: float, text: str) -> tuple[Labels, list[str]]:
    """Return an answer that a party gives ``count`` times, and is right with a share of them."""
    hits = round(count * right)
    return Labels((text,) * count, torch.full((count,), sure)), [text] * hits + ["other"] * (
        count - hits
    )


def test_overconfident_party_is_taken_down_and_targets_count_alike() -> None:
    """Sure of 0.99 in all, right in 90 of 100, but blind to the other target: one half."""
    checks, targets = said(100, 0.9, sure=0.99, text="yes")
    found = calibrated(Labels(("yes", ""), torch.tensor([0.99, 0.0])), checks, targets)
    assert found.texts == ("yes", "")
    assert found.confidence[1] == 0.0
    assert found.confidence[0] == pytest.approx(0.5, abs=0.01)


def test_answers_have_a_confidence_each_and_few_samples_share_the_mean() -> None:
    (often, t1), (rare, t2), (poor, t3) = (
        said(60, 1.0, sure=0.9, text="yes"),
        said(2, 0.0, sure=0.9, text="maybe"),
        said(60, 0.25, sure=0.9, text="no"),
    )
    checks, targets = often + rare + poor, t1 + t2 + t3
    asked = Labels(("yes", "maybe", "no", "new"), torch.full((4,), 0.9))
    yes, maybe, no, new = calibrated(asked, checks, targets).confidence.tolist()
    assert yes > 0.9
    # Of 122 samples, 15 have the target "no" and 47 the target "other": each target has a third of
    # the weight, so "no" is right with the weight of 1, and wrong with that of 45 / 47.
    assert no == pytest.approx(1 / (1 + 45 / 47), abs=0.05)
    assert no < new < yes, "a text that was never checked has the common mean"
    assert maybe > 0.1, "two wrong ones are not enough to say never"


def test_ranks_of_one_text_stay_where_probability_tells_right_from_wrong() -> None:
    sure = torch.linspace(0.05, 0.95, 200)
    generator = torch.Generator().manual_seed(2)
    right = torch.rand(200, generator=generator) < sure**3  # overconfident, and ordered
    targets = ["yes" if hit else "no" for hit in right.tolist()]
    asked = Labels(("yes",) * 3, torch.tensor([0.2, 0.5, 0.9]))
    hits = int(right.sum())
    low, middle, high = calibrated(asked, Labels(("yes",) * 200, sure), targets).confidence.tolist()
    assert low < middle < high
    for sure_of, found in ((0.2, low), (0.9, high)):
        odds = sure_of**3 / (1 - sure_of**3) * (200 - hits) / hits  # both targets count alike
        assert found == pytest.approx(odds / (1 + odds), abs=0.1)


def test_nothing_to_check_with_changes_nothing() -> None:
    labels = Labels(("a", "b"), torch.tensor([0.5, 0.25]))
    silent = Labels(("", ""), torch.zeros(2))
    for checks, targets in ((Labels.none(), []), (silent, ["a", "b"])):
        assert calibrated(labels, checks, targets) is labels
    checks, targets = said(4, 0.5, sure=0.5, text="a")
    assert calibrated(Labels.none(), checks, targets).texts == ()
