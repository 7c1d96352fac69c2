"""Class labels read back from text, and their scores against scikit-learn."""

# ruff: noqa: RUF001 - letters of other scripts are meant

import pickle

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from mlecs_lightning.metrics import LabelScores, keyword_label_reader

READ = keyword_label_reader(
    {"not lying": ["not lying", "upright"], "falling": ["falling", "falls"], "lying": ["lying"]}
)
WORDS = ["upright", "falls", "lying", "gibberish"]  # the last one is unreadable


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("The person Falls.", 1),
        ("falls, yes: falling", 1),
        ("a man lying\non the floor", 2),
        ("he is not  lying", 0),
        ("not lying but lying", None),
        ("upright, then falling", None),
        ("waterfalls", None),
        ("falls_down", None),
        ("", None),
    ],
)
def test_reader_finds_whole_phrases_of_one_class(text: str, label: int | None) -> None:
    assert READ(text) == label


def test_reader_takes_phrases_literally() -> None:
    read = keyword_label_reader({"question": ["c++?"], "other": ["c+"]})
    assert [read(text) for text in ("is it c++?", "c+", "c")] == [0, 1, None]


SCRIPTS = keyword_label_reader(
    {
        "fall": ["跌倒", "ล้ม", "падает", "fällt", "गिर रहा", "👎"],
        "lie": ["躺", "นอน", "лежит", "liegt", "लेटा", "👍"],
    }
)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("那个人跌倒了。", 0),
        ("这个人躺在床上", 1),
        ("跌倒，然后躺", None),
        ("我躺ing", 1),
        ("คนกำลังล้มลง", 0),
        ("คนนอนอยู่", 1),
        ("ล", None),
        ("Он ПАДАЕТ.", 0),
        ("лежитъ", None),
        ("FA\u0308LLT hin", 0),
        ("überfällt", None),
        ("वह गिर  रहा है", 0),
        ("ok👍", 1),
        ("👍\ufe0f", 1),
        ("👍🏽", None),  # another character
    ],
)
def test_reader_reads_every_script(text: str, label: int | None) -> None:
    assert SCRIPTS(text) == label


@pytest.mark.parametrize("phrase", ["\u200b", "\ufe0f", "\u3000"])
def test_a_phrase_of_nothing_that_is_seen_is_blank(phrase: str) -> None:
    with pytest.raises(ValueError, match="no blank one"):
        keyword_label_reader({"a": [phrase]})


@pytest.mark.parametrize("phrases", [("Straße", "STRASSE"), ("ﬁve", "five"), ("ﾃﾞ", "デ")])
def test_two_classes_cannot_share_a_phrase_in_another_form(phrases: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="names both 'a' and 'b'"):
        keyword_label_reader({"a": [phrases[0]], "b": [phrases[1]]})


def test_reader_survives_pickling() -> None:
    assert pickle.loads(pickle.dumps(READ))("upright") == 0


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"a": ["x"], "b": []}, "class 'b' needs at least one phrase"),
        ({"a": ["x", " "]}, "class 'a' needs at least one phrase"),
        ({"a": ["x"], "b": ["X "]}, "'x' names both 'a' and 'b'"),
    ],
)
def test_ambiguous_keywords_are_refused(keywords: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        keyword_label_reader(keywords)


def test_scores_by_hand() -> None:
    metric = LabelScores(READ, 3)
    # Class 0: TP 1 of 2, predicted once, F1 2/3. Class 1: TP 1 of 2, predicted twice, F1 1/2.
    metric.update(["upright", "falls", "falls", "gibberish"], ["upright"] * 2 + ["falls"] * 2)
    scores = metric.compute()
    assert scores["accuracy"].item() == 0.5
    assert scores["macro_f1"].item() == pytest.approx((2 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize("present", [[0, 1, 2], [0, 2], [1]])
def test_scores_equal_scikit_learn_over_the_classes_of_the_targets(present: list[int]) -> None:
    generator = np.random.default_rng(0)
    true = generator.choice(present, 200)
    predicted = np.where(generator.random(200) < 0.5, true, generator.integers(0, 4, 200))
    metric = LabelScores(READ, 3)
    for part in (slice(0, 30), slice(30, 200)):
        metric.update([WORDS[i] for i in predicted[part]], [WORDS[i] for i in true[part]])
    scores = metric.compute()
    expected = f1_score(true, predicted, labels=present, average="macro")
    assert scores["macro_f1"].item() == pytest.approx(expected, abs=1e-6)
    assert scores["accuracy"].item() == pytest.approx(accuracy_score(true, predicted), abs=1e-6)


def test_stray_prediction_of_an_absent_class_costs_recall_alone() -> None:
    metric = LabelScores(READ, 3)
    metric.update(["falls", "falls", "falls", "upright"], ["falls"] * 4)
    assert metric.compute()["macro_f1"].item() == pytest.approx(2 * 3 / (4 + 3))


def test_unreadable_target_is_an_error_that_quotes_it() -> None:
    with pytest.raises(ValueError, match="finds no class in the target 'gibberish'"):
        LabelScores(READ, 3).update(["falls", "falls"], ["falls", "gibberish"])


def test_label_beyond_the_classes_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"returned 2 for 'lying', expected 0\.\.1 or None"):
        LabelScores(READ, 2).update(["lying"], ["falls"])


def test_unequal_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match="1 predictions for 2 targets"):
        LabelScores(READ, 3).update(["lying"], ["falls", "falls"])
