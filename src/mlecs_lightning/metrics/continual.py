"""How a learner of a changing stream does: on the present, and on what it has left behind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["ContinualScores", "continual_scores"]


class ContinualScores(NamedTuple):
    """Scores of a stream of domains.

    R[i][d] is the score on domain d after the i-th stretch of rounds on one domain, T the last one.

    Attributes:
        present: Mean over i of R[i][the domain of i]: what the device is worth where it is.
        final: Mean over all domains of R[T][d] (average accuracy, arXiv 1706.08840).
        backward_transfer: Mean over the domains d left behind of R[T][d] minus R at the end of the
            last stretch on d (arXiv 1706.08840); below 0 is lost.
        forgetting: Mean over the same domains of the best R[i][d] since d was first met minus
            R[T][d] (arXiv 1801.10112).
    """

    present: float
    final: float
    backward_transfer: float
    forgetting: float


def continual_scores(
    rows: Sequence[Mapping[str, float]], present: Sequence[str]
) -> ContinualScores:
    """Sum up the scores of a stream.

    Args:
        rows: After some rounds, in order: the score of every domain. The last row of a stretch
            counts as its end. A domain without a score is left out.
        present: For each row the domain that was present.

    Returns:
        The scores; NaN where there is nothing to take a mean of: no domain that was left behind, no
        rows.

    Raises:
        ValueError: If there are not as many rows as names.

    Example:
        >>> rows = [{"a": 0.8, "b": 0.1}, {"a": 0.5, "b": 0.9}]
        >>> scores = continual_scores(rows, ["a", "b"])
        >>> [round(s, 2) for s in scores]
        [0.85, 0.7, -0.3, 0.3]
    """
    if len(rows) != len(present):
        raise ValueError(f"{len(rows)} rows, and {len(present)} names of what was present")
    ends = [
        (name, row)
        for k, (name, row) in enumerate(zip(present, rows, strict=True))
        if k + 1 == len(rows) or present[k + 1] != name
    ]
    last: Mapping[str, float] = ends[-1][1] if ends else {}
    transfer, forgotten = [], []
    for domain in dict.fromkeys(present):
        if domain == present[-1] or domain not in last:
            continue
        visits = [i for i, (name, row) in enumerate(ends) if name == domain and domain in row]
        if not visits:
            continue
        since = [row[domain] for _, row in ends[visits[0] :] if domain in row]
        transfer.append(last[domain] - ends[visits[-1]][1][domain])
        forgotten.append(max(since) - last[domain])
    return ContinualScores(
        _mean([row[name] for name, row in ends if name in row]),
        _mean(list(last.values())),
        _mean(transfer),
        _mean(forgotten),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
