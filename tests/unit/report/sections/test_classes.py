import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from mlecs_lightning.report.sections.classes import class_scores


def test_scores_of_a_class_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, size=(4, 5))
    true = np.repeat(np.repeat(np.arange(4), 5), counts.ravel())
    answered = np.repeat(np.tile(np.arange(5), 4), counts.ravel())
    expected = precision_recall_fscore_support(true, answered, labels=range(4), zero_division=0)
    for k, scores in enumerate(class_scores(counts)):
        found = [scores[name] for name in ("precision", "recall", "F1")]
        assert found == pytest.approx([column[k] for column in expected[:3]])


def test_a_class_without_samples_or_answers_has_no_score() -> None:
    absent, silent = class_scores(np.array([[0, 0, 0], [1, 0, 2]]))
    assert absent == {"precision": 0.0, "recall": None, "F1": None}
    assert silent == {"precision": None, "recall": 0.0, "F1": 0.0}
