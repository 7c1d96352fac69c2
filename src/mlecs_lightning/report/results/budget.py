"""What a row of a table has spent: only what cost the same can be called better or worse."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from mlecs_lightning.report.results.rows import Row, is_ceiling, number_at

__all__ = ["MARKED", "Budget", "budget_of", "unequal"]

_STEPS, _BATCH = "algorithm.init_args.steps.", "data.init_args.batch_size"
# What else decides how much a round trains.
_SHARES = (
    "trainer.limit_train_batches",
    "trainer.participation.fraction",
    "trainer.fast_dev_run",
)

# By which factor two budgets may differ and still be one. Our choice. Bytes vary with headers and
# with the samples that a seed draws; of seconds the same work took 44 and 72 on one machine, by
# what else it did (FedProx in docs/results.md).
_BYTES_FACTOR, _SECONDS_FACTOR = 1.1, 2.0

MARKED = (
    "Bold is the best among rows of one budget: as many optimiser steps over all rounds, bytes "
    f"within {_BYTES_FACTOR - 1:.0%}, seconds within a factor of {_SECONDS_FACTOR:g}."
)
"""What bold means, for the note of a table."""


@dataclass(frozen=True)
class Budget:
    """What runs of one algorithm have spent, mean over the seeds.

    Attributes:
        rounds: Rounds.
        work: For each pass of a round its optimiser steps times the rounds, and what else decides
            how much is trained; ``None`` if the configuration is not known.
        bytes: Bytes of all clients and rounds, both ways; ``None`` if they are not known.
        seconds: Seconds of a run; ``None`` if they are not known.
    """

    rounds: float
    work: Mapping[str, str] | None = None
    bytes: float | None = None
    seconds: float | None = None


def budget_of(rows: Sequence[Row]) -> Budget:
    """Return what runs that differ in their seed alone have spent.

    Args:
        rows: At least one.
    """
    rounds = fmean(row.rounds for row in rows)
    return Budget(
        rounds,
        _work(rows[0].settings, rounds),
        _mean(map(_sent, rows)),
        _mean(row.seconds for row in rows),
    )


def _work(settings: Mapping[str, str], rounds: float) -> dict[str, str] | None:
    if not settings:
        return None
    work = {key: settings[key] for key in (*_SHARES, _BATCH) if key in settings}
    steps = {key: settings[key] for key in settings if key.startswith(_STEPS)}
    for key, leaf in steps.items():
        count = json.loads(leaf)
        if key.endswith(".warmup"):  # is there once
            work[key] = leaf
        elif isinstance(count, (int, float)):
            work[key] = f"{count * rounds:g}"
        else:  # an epoch
            work[key] = f"{rounds:g} rounds"
    return work if steps else {**work, "rounds": f"{rounds:g}"}


def _sent(row: Row) -> float:
    ways = [number_at(row.summary, "communication", f"{w}_bytes") for w in ("uplink", "downlink")]
    known = [way for way in ways if way is not None]
    return math.fsum(known) if known and not is_ceiling(row) else math.nan


def _mean(values: Iterable[float]) -> float | None:
    mean = fmean(values)
    return None if math.isnan(mean) else mean


def unequal(one: Budget, other: Budget, *, metric: str = "") -> list[str]:
    """Return in what two budgets differ; what is not known of one of them counts as equal.

    Rounds times steps have to come to the same, bytes and seconds to about the same.

    Args:
        one: A budget.
        other: Another.
        metric: What is compared at it: bytes and seconds are no budget of their own.
    """
    found = []
    if one.work is None or other.work is None:
        if one.rounds != other.rounds:
            found.append("rounds")
    elif any(
        one.work.get(key, "null") != other.work.get(key, "null") for key in {*one.work, *other.work}
    ):
        found.append("rounds x steps")
    if not metric.startswith("communication.") and _apart(one.bytes, other.bytes, _BYTES_FACTOR):
        found.append("bytes")
    if metric != "seconds" and _apart(one.seconds, other.seconds, _SECONDS_FACTOR):
        found.append("seconds")
    return found


def _apart(one: float | None, other: float | None, factor: float) -> bool:
    if one is None or other is None:
        return False
    return max(one, other) > factor * min(one, other)
