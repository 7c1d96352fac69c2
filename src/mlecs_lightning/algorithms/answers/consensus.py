"""One answer for each sample from the answers of many clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from mlecs_lightning.algorithms.answers.labels import Labels, distinct
from mlecs_lightning.metrics.words import UnicodeTokenizer

__all__ = ["Consensus", "consensus", "reliability_consensus", "similarity_consensus", "word_f1"]

Consensus = Literal["similarity", "reliability"]

_ITERATIONS = 50
_words = lru_cache(maxsize=65536)(lambda text: Counter(UnicodeTokenizer().tokenize(text)))


def consensus(votes: Sequence[Labels], weights: Sequence[float], *, method: Consensus) -> Labels:
    """Return the clients' consensus.

    Args:
        votes: The answers of each client to the same N samples, at least one client.
        weights: A positive weight for each client; only ratios matter.
        method: `similarity_consensus` or `reliability_consensus`.
    """
    if method == "similarity":
        return similarity_consensus(votes, weights)
    return reliability_consensus(votes)


@lru_cache(maxsize=65536)
def word_f1(one: str, other: str) -> float:
    """Return the F1 of the words that two texts share, in 0..1; 1 for equal texts.

    Source: the F1 of SQuAD (arXiv 1606.05250), over the words of `UnicodeTokenizer`.

    Example:
        >>> word_f1("a bold two", "a two"), word_f1("a", "a"), word_f1("a", "b")
        (0.8, 1.0, 0.0)
    """
    if one == other:
        return 1.0
    mine, theirs = _words(one), _words(other)
    shared = (mine & theirs).total()
    return 2 * shared / (mine.total() + theirs.total()) if shared else 0.0


def similarity_consensus(votes: Sequence[Labels], weights: Sequence[float]) -> Labels:
    """Choose for each sample the answer that agrees most with all answers.

    The score of a candidate c is sum_j w_j p_j F1(c, a_j) over the clients' answers a_j with their
    confidences p_j and weights w_j; the candidates are the answers themselves. The confidence of
    the consensus is the score divided by sum_j w_j p_j: 1 if all answers are the same. Ties go to
    the text that comes first in the alphabet. Our choice.

    Args:
        votes: The answers of each client to the same N samples.
        weights: A positive weight for each client.
    """
    texts, confidence = [], []
    for answers, probabilities in zip(
        zip(*(vote.texts for vote in votes), strict=True),
        torch.stack([vote.confidence for vote in votes], dim=1).tolist(),
        strict=True,
    ):
        given = [
            (text, weight * probability)
            for text, weight, probability in zip(answers, weights, probabilities, strict=True)
            if text and probability > 0
        ]
        best, score = _most_agreed(given)
        texts.append(best)
        confidence.append(score)
    return Labels(tuple(texts), torch.tensor(confidence))


def _most_agreed(given: list[tuple[str, float]]) -> tuple[str, float]:
    """Return the candidate with the highest score, and that score in 0..1."""
    best, highest = "", 0.0
    total = sum(mass for _, mass in given)
    for candidate in sorted({text for text, _ in given}):
        score = sum(mass * word_f1(candidate, text) for text, mass in given) / total
        if score > highest:
            best, highest = candidate, score
    return best, min(highest, 1.0)


def reliability_consensus(votes: Sequence[Labels]) -> Labels:
    """Weigh each client by how often it is right, estimated from how the clients agree.

    The one-coin form of Dawid and Skene (Applied Statistics 28(1), 1979): client j answers right
    with probability r_j, and otherwise with any of the other K - 1 texts of the round. Expectation
    maximisation starts from the plain vote; the clients' own confidences are not used. The
    confidence of the consensus is its posterior probability.

    Args:
        votes: The answers of each client to the same N samples.
    """
    table = distinct(votes)
    row = {text: k for k, text in enumerate(table)}
    told = torch.tensor([[row.get(text, -1) for text in vote.texts] for vote in votes])
    if not table:
        return Labels(("",) * told.shape[1], torch.zeros(told.shape[1]))
    posterior = one_coin(told, classes=len(table))[0]
    asked = (told >= 0).any(dim=0)
    confidence, chosen = posterior.max(dim=1)
    texts = tuple(
        table[k] if answered else ""
        for k, answered in zip(chosen.tolist(), asked.tolist(), strict=True)
    )
    return Labels(texts, torch.where(asked, confidence, 0.0).float())


def one_coin(told: Tensor, *, classes: int) -> tuple[Tensor, Tensor]:
    """Estimate the truth and the reliabilities of those who tell it.

    Args:
        told: (J, N) the class that each of J says of N samples, -1 for nothing.
        classes: K, at least 1.

    Returns:
        The posterior (N, K) of the truth, a flat one where nobody says anything; and (J,) how often
        each is right, within [1 / (2 K), 1 - 1e-3].
    """
    spoken, index = told >= 0, told.clamp(min=0)

    def votes(strength: Tensor) -> Tensor:
        """Return (N, K), the sum of the strengths (J,) of all who say a class."""
        each = strength.unsqueeze(1) * spoken
        zeros = torch.zeros(told.shape[1], classes, dtype=torch.float64)
        return zeros.scatter_add_(1, index.T, each.T)

    counts = votes(torch.ones(len(told), dtype=torch.float64))
    posterior = (counts + 1 / classes) / (counts.sum(dim=1, keepdim=True) + 1)
    reliability = torch.zeros(len(told), dtype=torch.float64)
    for _ in range(_ITERATIONS):
        right = (posterior.gather(1, index.T).T * spoken).sum(dim=1)
        # Laplace's rule of succession, so that no client counts as certain.
        reliability = ((right + 1) / (spoken.sum(dim=1) + 2)).clamp(1 / (2 * classes), 1 - 1e-3)
        wrong = (1 - reliability) / max(classes - 1, 1)
        posterior = votes((reliability / wrong).log()).softmax(dim=1)
    return posterior, reliability
