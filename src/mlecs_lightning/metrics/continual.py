"""Metrics of continual learning: accuracy on the present domain, transfer and forgetting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["ContinualScores", "continual_scores"]


class ContinualScores(NamedTuple):
    """Scores of a stream of domains.

    R[i][d] is the score on domain d at the end of the i-th visit, i.e. of consecutive rounds on one
    domain; T is the last visit.

    Attributes:
        present: Mean over i of R[i][d_i], where d_i is the domain of visit i.
        final: Mean of R[T][d] over all domains (average accuracy, arXiv 1706.08840).
        backward_transfer: Mean, over all past domains d, of R[T][d] minus the score at the end of
            the last visit to d (arXiv 1706.08840); negative values mean forgetting.
        forgetting: Mean, over the same domains, of the best R[i][d] since the first visit to d,
            minus R[T][d] (arXiv 1801.10112).
    """

    present: float
    final: float
    backward_transfer: float
    forgetting: float


def continual_scores(
    rows: Sequence[Mapping[str, float]], present: Sequence[str]
) -> ContinualScores:
    """Compute the scores of a stream.

    Args:
        rows: The score on every domain, after each evaluated round. The last row of a visit counts
            as its end. Domains may be missing.
        present: The present domain of each row.

    Returns:
        The scores; NaN where a mean is over nothing, such as without past domains or rows.

    Raises:
        ValueError: If ``rows`` and ``present`` differ in length.

    Example:
        >>> rows = [{"a": 0.8, "b": 0.1}, {"a": 0.5, "b": 0.9}]
        >>> scores = continual_scores(rows, ["a", "b"])
        >>> [round(s, 2) for s in scores]
        [0.85, 0.7, -0.3, 0.3]
    """
    if len(rows) != len(present):
        raise ValueError(f"got {len(rows)} rows, but {len(present)} names of present domains")
    ends = _ends_of_visits(rows, present)
    last: Mapping[str, float] = ends[-1][1] if ends else {}
    past = [domain for domain in dict.fromkeys(present) if domain != present[-1]]
    transfer, forgotten = [], []
    for domain in past:
        scores = _scores_since_first_visit(domain, ends)
        if domain in last and scores:
            transfer.append(last[domain] - _score_after_last_visit(domain, ends))
            forgotten.append(max(scores) - last[domain])
    return ContinualScores(
        present=_mean([row[name] for name, row in ends if name in row]),
        final=_mean(list(last.values())),
        backward_transfer=_mean(transfer),
        forgetting=_mean(forgotten),
    )


_Ends = list[tuple[str, Mapping[str, float]]]


def _ends_of_visits(rows: Sequence[Mapping[str, float]], present: Sequence[str]) -> _Ends:
    """Return domain and scores of the last row of each visit."""
    visits = itertools.groupby(zip(present, rows, strict=True), key=lambda pair: pair[0])
    return [list(visit)[-1] for _, visit in visits]


def _scores_since_first_visit(domain: str, ends: _Ends) -> list[float]:
    """Return the scores on a domain from its first scored visit on; empty if there is none."""
    scores: list[float] = []
    for name, row in ends:
        if domain in row and (scores or name == domain):
            scores.append(row[domain])
    return scores


def _score_after_last_visit(domain: str, ends: _Ends) -> float:
    return [row[domain] for name, row in ends if name == domain and domain in row][-1]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
