from collections.abc import Callable

import pytest
import torch

from mlecs_lightning.algorithms.answers import Labels
from mlecs_lightning.algorithms.answers.consensus import (
    similarity_consensus,
    voted_consensus,
    word_f1,
)

METHODS: dict[str, Callable[[list[Labels], list[float], list[str]], Labels]] = {
    "similarity": lambda votes, weights, _: similarity_consensus(votes, weights),
    "reliability": lambda votes, _, known: voted_consensus(votes, known, method="reliability"),
    "confusion": lambda votes, _, known: voted_consensus(votes, known, method="confusion"),
}


def vote(*texts: str, sure: float = 1.0) -> Labels:
    return Labels(texts, torch.tensor([sure if text else 0.0 for text in texts]))


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [
        ("a bold two", "a bold two", 1.0),
        ("a bold two", "a light two", 2 * 2 / 6),
        ("a a two", "a two two", 2 * 2 / 6),
        ("Two!", "two", 1.0),
        ("one", "two", 0.0),
    ],
)
def test_word_f1_by_hand(one: str, other: str, value: float) -> None:
    assert word_f1(one, other) == word_f1(other, one) == pytest.approx(value)


def test_consensus_of_three_clients_by_hand() -> None:
    """Scores of the first sample: "a two" 2*0.5 + 1*0.8*F1, "a bold two" 0.8 + 1.0*F1, F1 = 4/5."""
    votes = [
        vote("a two", "", "", sure=0.5),
        vote("a bold two", "six", "", sure=0.8),
        vote("nine", "six", "", sure=0.1),
    ]
    f1 = 4 / 5
    found = similarity_consensus(votes, [2.0, 1.0, 1.0])
    assert found.texts == ("a two", "six", "")
    total = 2 * 0.5 + 0.8 + 0.1
    expected = [(1.0 + 0.8 * f1) / total, 1.0, 0.0]
    torch.testing.assert_close(found.confidence, torch.tensor(expected))


def test_weights_decide_and_their_scale_does_not() -> None:
    votes = [vote("one"), vote("two")]
    assert similarity_consensus(votes, [1.0, 3.0]).texts == ("two",)
    assert similarity_consensus(votes, [300.0, 100.0]).texts == ("one",)
    assert similarity_consensus(votes[::-1], [1.0, 1.0]).texts == ("one",), "ties: the alphabet"


def test_many_similar_answers_beat_two_equal_ones() -> None:
    """A vote over whole sentences would choose the pair."""
    votes = [vote(t) for t in ("six", "six", "bold two", "light two", "grey two", "odd two")]
    (chosen,) = similarity_consensus(votes, [1.0] * 6).texts
    assert chosen.endswith("two")


def test_reliable_client_overrules_two_that_agree_by_chance() -> None:
    texts = [f"digit {n % 5}" for n in range(40)]
    liar = [f"digit {(n * 3 + 1) % 5}" for n in range(40)]
    votes = [vote(*texts), vote(*texts), vote(*liar)]
    for method in ("reliability", "confusion"):
        assert voted_consensus(votes, [""] * 40, method=method).texts == tuple(texts)


def test_sample_that_nobody_answers_has_no_consensus() -> None:
    for consensus in METHODS.values():
        found = consensus([vote("a", ""), vote("a", "")], [1.0, 1.0], ["", ""])
        assert found.texts == ("a", "")
        assert found.confidence[1] == 0.0
        assert 0.5 < found.confidence[0] <= 1.0


def test_clients_in_another_order_have_the_same_consensus() -> None:
    votes = [vote("a two", "b"), vote("a six", "b"), vote("a two", "c")]
    for consensus in METHODS.values():
        one = consensus(votes, [1.0, 2.0, 3.0], ["", "b"])
        other = consensus(votes[::-1], [3.0, 2.0, 1.0], ["", "b"])
        assert one.texts == other.texts
        torch.testing.assert_close(one.confidence, other.confidence)


def test_targets_that_are_known_expose_a_majority_that_is_wrong() -> None:
    """Two clients agree and are wrong: only known targets can tell that the third is right."""
    texts = [f"digit {n % 4}" for n in range(60)]
    wrong = [f"digit {(n + 1) % 4}" for n in range(60)]
    votes = [vote(*wrong), vote(*wrong), vote(*texts)]
    nobody_knows, some_known = [""] * 60, [""] * 20 + texts[20:]
    for method in ("reliability", "confusion"):
        found = voted_consensus(votes, nobody_knows, method=method).texts[:20]
        assert found == tuple(wrong[:20])
        found = voted_consensus(votes, some_known, method=method).texts[:20]
        assert found == tuple(texts[:20])


def test_target_that_no_client_says_is_a_class_like_any_other() -> None:
    found = voted_consensus([vote("a", "b")], ["", "c"], method="reliability")
    assert found.texts == ("a", "c")
    assert found.confidence[1] == 1.0
