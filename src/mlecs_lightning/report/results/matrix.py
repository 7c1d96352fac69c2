"""Runs of several algorithms, settings and seeds: means, and differences seed by seed.

A matrix is a file of JSON lines, one run a line::

    {
        "algorithm": "MLECS",
        "setting": "five clients",
        "seed": 27,
        "rounds": 6,
        "seconds": 181.0,
        "commit": "15febd2",
        "summary": {...},
    }

``algorithm`` and ``setting`` are labels; ``summary`` is the run's ``summary.json``. A line may also
have ``options``: the keys of the configuration in which the runs differ, with their values.

    rows = read_lines("results.jsonl")
    entries = table(rows, ["mean.all.macro_f1", "server.macro_f1", "communication.uplink_bytes"])
    print(to_markdown(entries))  # of mlecs_lightning.report.markdown
    print(to_markdown(paired(rows, "FedAvg", "MLECS", "mean.all.macro_f1")))
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from mlecs_lightning.report.labels import NOTHING, size
from mlecs_lightning.report.results.budget import Budget, budget_of, unequal
from mlecs_lightning.report.results.configs import in_words
from mlecs_lightning.report.results.rows import MatrixError, Row, is_ceiling, read_lines, value

__all__ = [
    "Difference",
    "Entry",
    "MatrixError",
    "Row",
    "Stat",
    "best",
    "cell",
    "paired",
    "read_lines",
    "table",
    "unmatched",
    "value",
]


class Stat(NamedTuple):
    """Mean and spread over seeds.

    Attributes:
        mean: Arithmetic mean.
        std: Sample standard deviation (n - 1); ``None`` for one value.
        n: Number of values.
    """

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Entry:
    """One algorithm in one setting.

    Attributes:
        setting: The setting.
        algorithm: The algorithm.
        seeds: Seeds of its runs, ascending.
        stats: By metric; ``None`` where no run has it.
        ceiling: Whether it has all data in one place (`Centralized`): it is a bound, and no rival.
        budget: What its runs have spent.
        differs: In which settings its training differs from that of the first entry of the setting,
            in short words; empty if in none, or if they are not known.
    """

    setting: str
    algorithm: str
    seeds: tuple[int, ...]
    stats: Mapping[str, Stat | None]
    ceiling: bool = False
    budget: Budget = Budget(0)  # noqa: RUF009 - frozen
    differs: str = ""


@dataclass(frozen=True)
class Difference:
    """How much better or worse than a reference, over the seeds that both have.

    Attributes:
        setting: The setting.
        metric: Of what.
        reference: What is subtracted.
        other: What it is subtracted from.
        seeds: The seeds that both have, ascending.
        mean: Mean of other - reference.
        low: Lower end of the 95 % confidence interval; ``None`` with fewer than two seeds.
        high: Upper end.
    """

    setting: str
    metric: str
    reference: str
    other: str
    seeds: tuple[int, ...]
    mean: float
    low: float | None
    high: float | None


# Statistics ---------------------------------------------------------------------------------------


def table(rows: Iterable[Row], metrics: Sequence[str], *, order: Sequence[str] = ()) -> list[Entry]:
    """Return mean and spread of each algorithm in each setting.

    Args:
        rows: The runs.
        metrics: What to look at; see `value`.
        order: Labels, of settings or algorithms, that come first, in this order; the others follow
            as they first appear.
    """
    cells: dict[tuple[str, str], list[Row]] = {}
    settings, algorithms = list(order), list(order)
    for row in rows:
        cells.setdefault((row.setting, row.algorithm), []).append(row)
        settings.append(row.setting)
        algorithms.append(row.algorithm)
    keys = sorted(cells, key=lambda key: (settings.index(key[0]), algorithms.index(key[1])))
    first = {setting: cells[setting, algorithm] for setting, algorithm in reversed(keys)}
    return [
        Entry(
            setting,
            algorithm,
            tuple(sorted(row.seed for row in cells[setting, algorithm])),
            {m: _stat([value(row, m) for row in cells[setting, algorithm]]) for m in metrics},
            all(map(is_ceiling, cells[setting, algorithm])),
            budget_of(cells[setting, algorithm]),
            _differs(cells[setting, algorithm], first[setting]),
        )
        for setting, algorithm in keys
    ]


def _differs(ours: Sequence[Row], first: Sequence[Row]) -> str:
    """Say how runs differ in their training from the first of the table."""
    rounds, others = ({row.rounds for row in rows} for rows in (ours, first))
    said = "" if rounds == others else f"rounds {_span(rounds)} ({_span(others)})"
    if ours[0].settings and first[0].settings:
        # Planned rounds say less than those that there were.
        a, b = ({**rows[0].settings, "trainer.max_rounds": ""} for rows in (ours, first))
        words = in_words(a, b)
    else:
        words = ""
    return ", ".join(each for each in (said, words) if each)


def _span(numbers: Set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(high) if low == high else f"{low} to {high}"


def _stat(values: Iterable[float | None]) -> Stat | None:
    numbers = [each for each in values if each is not None]
    if not numbers:
        return None
    return Stat(
        statistics.fmean(numbers),
        statistics.stdev(numbers) if len(numbers) > 1 else None,
        len(numbers),
    )


def paired(rows: Iterable[Row], reference: str, other: str, metric: str) -> list[Difference]:
    """Return other - reference, seed by seed, for every setting that both have a seed of.

    The 95 % interval is Student's t over the n differences: mean ± t(n - 1) s / sqrt(n). It takes
    the differences for normal, and of few seeds it is wide.

    Args:
        rows: The runs.
        reference: Label of an algorithm.
        other: Label of another.
        metric: What to look at; see `value`.

    Raises:
        MatrixError: If no run has one of the labels.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    known: dict[str, None] = {}
    for row in rows:
        known[row.algorithm] = None
        number = value(row, metric)
        if number is not None:
            by_label = found.setdefault(row.setting, {})
            by_label.setdefault(row.algorithm, {})[row.seed] = number
    for label in (reference, other):
        if label not in known:
            raise MatrixError(f"no run of algorithm {label!r}; there are {list(known)}")
    differences = []
    for setting, by_label in found.items():
        ours, theirs = by_label.get(other, {}), by_label.get(reference, {})
        seeds = tuple(sorted(set(ours) & set(theirs)))
        if seeds:
            stat = _stat([ours[seed] - theirs[seed] for seed in seeds])
            assert stat is not None
            low, high = _interval(stat)
            differences.append(
                Difference(setting, metric, reference, other, seeds, stat.mean, low, high)
            )
    return differences


def _interval(stat: Stat) -> tuple[float | None, float | None]:
    if stat.std is None:
        return None, None
    from scipy.stats import t  # takes most of a second, and a report of one seed has no use for it

    half = float(t.ppf(0.975, stat.n - 1)) * stat.std / math.sqrt(stat.n)
    return stat.mean - half, stat.mean + half


# Cells --------------------------------------------------------------------------------------------


def lower_is_better(metric: str) -> bool:
    """Return whether little of a metric is good."""
    return metric.startswith("communication.") or metric.endswith(
        (".loss", "seconds", ".forgetting")
    )


def best(entries: Sequence[Entry], metric: str) -> set[int]:
    """Return which entries are best in a metric among those of their budget, to the digits shown.

    Only entries of one setting should be given. A ceiling is no rival, and neither is, of bytes,
    who sends nothing. Where all of a budget are equal, or there is only one, none is best. No
    epsilon is: it is what the noise was set to.

    Returns:
        Indices of entries.
    """
    if metric.startswith("privacy."):
        return set()
    means = {
        i: stat.mean
        for i, entry in enumerate(entries)
        if not entry.ceiling
        and (stat := entry.stats.get(metric)) is not None
        and not (metric.startswith("communication.") and stat.mean == 0)
    }
    choose = min if lower_is_better(metric) else max
    found = set()
    for i, mean in means.items():
        own = entries[i].budget
        equals = [m for j, m in means.items() if not unequal(own, entries[j].budget, metric=metric)]
        shown = {_shown(metric, each) for each in equals}
        if len(shown) > 1 and _shown(metric, mean) == _shown(metric, choose(equals)):
            found.add(i)
    return found


def _shown(metric: str, mean: float) -> str:
    return cell(metric, Stat(mean, None, 1))


def unmatched(entries: Sequence[Entry]) -> str:
    """Say which entries of one setting no other has the budget of, and what each differs in.

    Those have no rival, and nothing in their rows is marked as best; empty if there is none.
    """
    rivals = [entry for entry in entries if not entry.ceiling]
    said = []
    for entry in rivals if len(rivals) > 1 else ():
        apart = [unequal(entry.budget, each.budget) for each in rivals if each is not entry]
        if all(apart):
            nearest = sorted(apart, key=len)[0]
            said.append(f"{entry.algorithm} ({', '.join(nearest)})")
    if not said:
        return ""
    return f"Not compared, as no other row has the same budget: {'; '.join(said)}."


def cell(metric: str, stat: Stat | None, *, n: int | None = None) -> str:
    """Return a mean and its spread as text.

    Args:
        metric: Decides on the unit: bytes, percent, seconds, or a score with three digits.
        stat: What to show.
        n: Number of seeds of the row; another number of values is told.
    """
    if stat is None:
        return NOTHING
    if metric.endswith("_bytes"):
        text = size(stat.mean) if stat.mean else "0"
    elif ".ratio_of_" in metric:
        text = f"{stat.mean:.2%}"
    elif metric in ("seconds", "rounds"):
        text = f"{stat.mean:.0f}"
    else:
        text = f"{stat.mean:.3f}"
        if stat.std is not None:
            text += f" ± {stat.std:.3f}"
    return text if n in (None, stat.n) else f"{text} (n = {stat.n})"


def signed(difference: Difference) -> tuple[str, str]:
    """Return mean and interval of a difference as text."""
    digits = "+,.0f" if difference.metric.endswith(("_bytes", "seconds", "rounds")) else "+.3f"
    if difference.low is None or difference.high is None:
        return f"{difference.mean:{digits}}", "-"
    return (
        f"{difference.mean:{digits}}",
        f"[{difference.low:{digits}}, {difference.high:{digits}}]",
    )
