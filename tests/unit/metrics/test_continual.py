import math

import pytest

from mlecs_lightning.metrics import continual_scores


def test_a_stream_of_three_by_hand() -> None:
    rows = [
        {"a": 0.5, "b": 0.1, "c": 0.2},
        {"a": 0.8, "b": 0.2, "c": 0.2},  # the end of a
        {"a": 0.9, "b": 0.7, "c": 0.3},  # the end of b; a has gained
        {"a": 0.6, "b": 0.8, "c": 0.9},
    ]
    scores = continual_scores(rows, ["a", "a", "b", "c"])
    assert scores.present == pytest.approx((0.8 + 0.7 + 0.9) / 3)
    assert scores.final == pytest.approx((0.6 + 0.8 + 0.9) / 3)
    assert scores.backward_transfer == pytest.approx(((0.6 - 0.8) + (0.8 - 0.7)) / 2)
    assert scores.forgetting == pytest.approx(((0.9 - 0.6) + (0.8 - 0.8)) / 2)


def test_a_domain_that_comes_back_is_left_behind_for_the_last_time() -> None:
    rows = [{"a": 0.9, "b": 0.0}, {"a": 0.4, "b": 0.8}, {"a": 0.7, "b": 0.6}, {"a": 0.5, "b": 0.9}]
    scores = continual_scores(rows, ["a", "b", "a", "b"])
    assert scores.present == pytest.approx((0.9 + 0.8 + 0.7 + 0.9) / 4)
    assert scores.backward_transfer == pytest.approx(0.5 - 0.7)
    assert scores.forgetting == pytest.approx(0.9 - 0.5)


def test_where_there_is_nothing_there_is_no_number() -> None:
    assert all(math.isnan(s) for s in continual_scores([], []))
    alone = continual_scores([{"a": 0.5}], ["a"])
    assert (alone.present, alone.final) == (0.5, 0.5)
    assert math.isnan(alone.backward_transfer)
    lacking = continual_scores([{"b": 0.5}, {"b": 0.7}], ["a", "b"])  # no test samples of a
    assert (lacking.present, lacking.final) == (0.7, 0.7)
    assert math.isnan(lacking.forgetting)
    with pytest.raises(ValueError, match="1 rows, but 2 names"):
        continual_scores([{}], ["a", "b"])
