"""What an algorithm makes of the updates of a round."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Aggregate"]


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """What the trainer reads of an aggregate; an algorithm adds fields of its own in a subclass.

    Attributes:
        clients: Number of updates that went in.
        error: Relative distance of the aggregate from the exact weighted mean of the updates, where
            there is such a mean; else 0.
    """

    clients: int
    error: float = 0.0
