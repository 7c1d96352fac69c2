"""The base class of what algorithms make of a round's updates."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Aggregate"]


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """The fields of an aggregate that the trainer reads; algorithms add their own in a subclass.

    Attributes:
        clients: Number of aggregated updates.
        error: Relative distance of the aggregate from the exact weighted mean of the updates; 0 for
            algorithms without such a mean.
    """

    clients: int
    error: float = 0.0
