"""Calibrated confidence: how right a party is where it says that it is sure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mlecs_lightning.algorithms.answers.consensus import word_f1
from mlecs_lightning.algorithms.answers.labels import Labels
from mlecs_lightning.metrics import references_of

__all__ = ["calibrated", "rightness"]

_LEAST = 1e-6
"""Smallest probability whose logarithm is told apart: float16 holds no smaller ones well."""


def rightness(texts: Sequence[str], targets: Sequence[str]) -> Tensor:
    """Return how right each answer is beyond chance, (N,) float64 in 0..1.

    The answers to one task share many words, so the word-F1 of an answer that is entirely wrong is
    far from 0. Chance is the mean F1 between the different targets, and rightness is
    max(0, (F1 - chance) / (1 - chance)): 1 for the target itself, 0 for another target on average.
    The F1 with a target is that with its best reference, as in the metrics; two references of one
    target are no different targets.

    Args:
        texts: N answers.
        targets: The N targets.
    """
    different = sorted(set(targets))
    pairs = [
        (_f1(one, other) + _f1(other, one)) / 2  # they differ where references do
        for n, one in enumerate(different)
        for other in different[n + 1 :]
        if one not in references_of(other) and other not in references_of(one)
    ]
    chance = min(float(np.mean(pairs)) if pairs else 0.0, 1 - _LEAST)
    scores = [_f1(text, target) for text, target in zip(texts, targets, strict=True)]
    return ((torch.tensor(scores, dtype=torch.float64) - chance) / (1 - chance)).clamp(0, 1)


def _f1(text: str, target: str) -> float:
    """Return the word-F1 of a text with the reference of a target that is closest to it."""
    return max(word_f1(text, reference) for reference in references_of(target))


def calibrated(labels: Labels, checks: Labels, targets: Sequence[str]) -> Labels:
    """Replace a party's confidences by how right it is where it is that sure.

    A logistic regression on answers to samples with known targets predicts `rightness` from the
    logarithm of the probability (Platt scaling) and from the text of the answer, one indicator a
    text. Its L2 penalty draws each text's offset to the common mean, the more so the fewer samples
    have that answer. A sample weighs by 1 / (how often its target occurs): otherwise a party that
    always says the commonest answer would count as right. One right and one wrong sample are added
    (Laplace's rule), so that nobody counts as certain.

    Args:
        labels: The party's answers to N samples.
        checks: Its answers to C samples that it was not trained on.
        targets: The C targets of these samples.

    Returns:
        The same texts with other confidences; unchanged ones if there is nothing to check with.
    """
    from sklearn.linear_model import LogisticRegression

    spoken = [n for n, text in enumerate(checks.texts) if text]
    if not spoken:
        return labels
    texts = [checks.texts[n] for n in spoken]
    known = sorted(set(texts))
    right = rightness(texts, [targets[n] for n in spoken]).numpy()
    logs = np.log(checks.confidence[spoken].double().clamp(min=_LEAST).numpy())
    centre, spread = logs.mean(), max(float(logs.std()), 1e-3)

    def features(texts: Sequence[str], logs: np.ndarray) -> np.ndarray:
        row = {text: k for k, text in enumerate(known)}
        columns = np.zeros((len(texts), 1 + len(known)))
        columns[:, 0] = (logs - centre) / spread
        for n, text in enumerate(texts):
            if text in row:
                columns[n, 1 + row[text]] = 1.0
        return columns

    seen = features(texts, logs)
    rows = np.concatenate([seen, seen, np.zeros((2, seen.shape[1]))])
    outcome = np.repeat([1, 0, 1, 0], [len(seen), len(seen), 1, 1])
    common = Counter(targets[n] for n in spoken)
    rare = np.array([len(spoken) / (len(common) * common[targets[n]]) for n in spoken])
    weight = np.concatenate([rare * right, rare * (1 - right), [1.0, 1.0]])
    model = LogisticRegression(max_iter=1000).fit(rows, outcome, sample_weight=weight)
    asked = np.log(labels.confidence.double().clamp(min=_LEAST).numpy())
    if not len(asked):
        return labels
    sure = torch.from_numpy(model.predict_proba(features(labels.texts, asked))[:, 1]).float()
    answered = torch.tensor([bool(text) for text in labels.texts])
    return Labels(labels.texts, torch.where(answered, sure, 0.0))
