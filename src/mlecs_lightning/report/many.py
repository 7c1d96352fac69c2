"""What to show of many clients: how their scores are spread, and the lowest and highest of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["AT_ENDS", "MOST_ROWS", "QUANTILES", "Ends", "ends_of", "quantiles_of"]

MOST_ROWS = 20
"""Number of clients up to which a table shows all of them."""

AT_ENDS = 5
"""Number of clients that a longer table shows at each end."""

QUANTILES = {
    "lowest": 0.0,
    "lower quartile": 0.25,
    "median": 0.5,
    "upper quartile": 0.75,
    "highest": 1.0,
}
"""The quantiles that such a table shows."""


class Ends(NamedTuple):
    """The clients at both ends of an order.

    Attributes:
        worst: Those with the lowest scores, the lowest first.
        best: Those with the highest scores, the highest first.
        unscored: Number of clients without a score.
    """

    worst: Sequence[str]
    best: Sequence[str]
    unscored: int


def ends_of(scores: Mapping[str, float | None]) -> Ends:
    """Return the clients with the lowest and the highest scores; ties by name.

    Args:
        scores: Score of each client; ``None`` for a client without one.

    Example:
        >>> ends_of({"a": 0.3, "b": None, "c": 0.1}).worst
        ['c', 'a']
    """
    known = {name: score for name, score in scores.items() if score is not None}
    order = sorted(known, key=lambda name: (known[name], name))
    worst = order[:AT_ENDS]
    best = order[len(worst) :][-AT_ENDS:]
    return Ends(worst, best[::-1], len(scores) - len(known))


def quantiles_of(scores: Sequence[float]) -> dict[str, float]:
    """Return the quantiles of some scores by name, linear between neighbours; empty for none.

    Example:
        >>> quantiles_of([0.0, 1.0, 4.0])["upper quartile"]
        2.5
    """
    if not scores:
        return {}
    found = np.quantile(np.asarray(scores, dtype=float), list(QUANTILES.values()))
    return dict(zip(QUANTILES, map(float, found), strict=True))
