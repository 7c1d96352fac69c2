"""What an evaluation finds: scores, their means, and what answers are compared with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Scores", "Tested", "checks_of", "mean_rows"]

Scores = dict[str, dict[str, float]]


class Tested(NamedTuple):
    """Test of one party.

    Attributes:
        scores: Its scores, by view.
        constant: Those of the best constant sentence, by view.
        checks: What its answers are compared with.
        confusion: Counts of answers on all domains; ``None`` without classes or samples.
    """

    scores: Scores
    constant: Scores
    checks: dict[str, Any]
    confusion: list[list[int]] | None


def mean_rows(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each value over the rows that have it and in which it is a number."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if not math.isnan(value):
                columns.setdefault(name, []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in columns.items()}


def checks_of(
    constant: Mapping[str, float], said: Sequence[Mapping[str, str]], known: Iterable[str]
) -> dict[str, Any]:
    """Return what a party's answers are compared with.

    Args:
        constant: Scores of the best constant sentence on the same samples.
        said: Predictions and targets.
        known: The sentences that the party was trained on.

    Returns:
        ``constant``, and under ``repeated`` the share of the ``answers`` and of the ``targets``
        that are one of these sentences word for word; empty without predictions.
    """
    if not said:
        return {}
    sentences = {" ".join(each.split()) for each in known if each}
    shares = {
        name: sum(" ".join(row[key].split()) in sentences for row in said) / len(said)
        for name, key in (("answers", "prediction"), ("targets", "target"))
    }
    return {"constant": dict(constant), "repeated": shares}
