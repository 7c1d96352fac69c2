"""One answer for each sample from the answers of many clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch

from mlecs_lightning.algorithms.answers.labels import Labels, distinct
from mlecs_lightning.algorithms.answers.reliability import confusion, one_coin
from mlecs_lightning.metrics.words import UnicodeTokenizer

__all__ = ["Consensus", "VotedConsensus", "similarity_consensus", "voted_consensus", "word_f1"]

VotedConsensus = Literal["reliability", "confusion"]
Consensus = Literal["similarity", "reliability", "confusion"]

_words = lru_cache(maxsize=65536)(lambda text: Counter(UnicodeTokenizer().tokenize(text)))


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


def voted_consensus(
    votes: Sequence[Labels], known: Sequence[str], *, method: VotedConsensus
) -> Labels:
    """Weigh each client by how it answers where the truth is known, and where clients agree.

    The models are those of Dawid and Skene; see `one_coin` and `confusion`. Their classes are the
    distinct texts of the round. The clients' own confidences are not used. The confidence of the
    consensus is its posterior probability.

    Args:
        votes: The answers of each client to the same N samples.
        known: The N targets; empty where nobody knows it.
        method: ``reliability`` for `one_coin`, ``confusion`` for `confusion`.
    """
    table = distinct([*votes, Labels(tuple(known), torch.zeros(len(known)))])
    row = {text: k for k, text in enumerate(table)}
    told = torch.tensor([[row.get(text, -1) for text in vote.texts] for vote in votes])
    if not table:
        return Labels(("",) * told.shape[1], torch.zeros(told.shape[1]))
    truth = torch.tensor([row.get(text, -1) for text in known])
    model = one_coin if method == "reliability" else confusion
    posterior = model(told, classes=len(table), known=truth)[0]
    asked = (told >= 0).any(dim=0)
    confidence, chosen = posterior.max(dim=1)
    texts = tuple(
        table[k] if answered else ""
        for k, answered in zip(chosen.tolist(), asked.tolist(), strict=True)
    )
    return Labels(texts, torch.where(asked, confidence, 0.0).float())
