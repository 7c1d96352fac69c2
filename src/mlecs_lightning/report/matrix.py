"""Runs of several algorithms, settings and seeds: means, paired differences, Markdown.

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

``algorithm`` and ``setting`` are labels; ``summary`` is the run's ``summary.json``.

    rows = read_lines("results.jsonl")
    entries = table(rows, ["mean.all.macro_f1", "server.macro_f1", "communication.uplink_bytes"])
    print(to_markdown(entries))
    print(to_markdown(paired(rows, "FedAvg", "MLECS", "mean.all.macro_f1")))
"""

from __future__ import annotations

import html
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mlecs_lightning.report.labels import heading, size
from mlecs_lightning.report.rows import MatrixError, Row, is_ceiling, read_lines, value

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
    "replace_between",
    "table",
    "to_markdown",
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
    """

    setting: str
    algorithm: str
    seeds: tuple[int, ...]
    stats: Mapping[str, Stat | None]
    ceiling: bool = False


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
    return [
        Entry(
            setting,
            algorithm,
            tuple(sorted(row.seed for row in cells[setting, algorithm])),
            {m: _stat([value(row, m) for row in cells[setting, algorithm]]) for m in metrics},
            all(map(is_ceiling, cells[setting, algorithm])),
        )
        for setting, algorithm in keys
    ]


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
    """Return which entries are best in a metric, to the digits that are shown.

    Only entries of one setting should be given. A ceiling is no rival, and neither is, of bytes,
    who sends nothing. Where all are equal, or there is only one, none is best.

    Returns:
        Indices of entries.
    """
    down = lower_is_better(metric)
    means = {
        i: stat.mean
        for i, entry in enumerate(entries)
        if not entry.ceiling
        and (stat := entry.stats.get(metric)) is not None
        and not (metric.startswith("communication.") and stat.mean == 0)
    }
    if not means:
        return set()
    first = min(means.values()) if down else max(means.values())
    shown = cell(metric, Stat(first, None, 1))
    found = {i for i, mean in means.items() if cell(metric, Stat(mean, None, 1)) == shown}
    return set() if len(found) == len(means) else found


def cell(metric: str, stat: Stat | None, *, n: int | None = None) -> str:
    """Return a mean and its spread as text.

    Args:
        metric: Decides on the unit: bytes, percent, seconds, or a score with three digits.
        stat: What to show.
        n: Number of seeds of the row; another number of values is told.
    """
    if stat is None:
        return "-"
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


# Markdown -----------------------------------------------------------------------------------------


def to_markdown(content: Sequence[Entry] | Sequence[Difference]) -> str:
    """Return a Markdown table, the best of each column and setting in bold.

    Args:
        content: What `table` or `paired` returned; several results of `paired` can be joined.

    Returns:
        The table, ending in a newline; an empty string for no content.
    """
    entries = [each for each in content if isinstance(each, Entry)]
    differences = [each for each in content if isinstance(each, Difference)]
    return _entries(entries) if entries else _differences(differences)


def _entries(entries: Sequence[Entry]) -> str:
    if not entries:
        return ""
    metrics = [m for m in entries[0].stats if any(e.stats.get(m) for e in entries)]
    by_setting: dict[str, list[Entry]] = {}
    for entry in entries:
        by_setting.setdefault(entry.setting, []).append(entry)
    lines = []
    for rivals in by_setting.values():
        marked = {metric: best(rivals, metric) for metric in metrics}
        for i, entry in enumerate(rivals):
            seeds = len(entry.seeds)
            shown = [cell(metric, entry.stats.get(metric), n=seeds) for metric in metrics]
            lines.append(
                [
                    escape_markdown(entry.setting),
                    escape_markdown(entry.algorithm) + (" (ceiling)" if entry.ceiling else ""),
                    *(
                        f"**{text}**" if i in marked[metric] else text
                        for metric, text in zip(metrics, shown, strict=True)
                    ),
                    str(seeds),
                ]
            )
    head = ["setting", "algorithm", *map(heading, metrics), "seeds"]
    return _without_setting(head, lines, words=2, single=len(by_setting) == 1)


def _differences(differences: Sequence[Difference]) -> str:
    """Return a row for each setting and pair, a column for each metric."""
    if not differences:
        return ""
    metrics = list(dict.fromkeys(each.metric for each in differences))
    by_pair: dict[tuple[str, str], dict[str, Difference]] = {}
    for each in differences:
        pair = each.setting, f"{each.other} - {each.reference}"
        by_pair.setdefault(pair, {})[each.metric] = each
    lines = []
    for pair, found in by_pair.items():
        seeds = max(len(each.seeds) for each in found.values())
        cells = [_with_interval(found[m], n=seeds) if m in found else "-" for m in metrics]
        lines.append([*map(escape_markdown, pair), *cells, str(seeds)])
    head = ["setting", "difference", *map(heading, metrics), "seeds"]
    single = len({each.setting for each in differences}) == 1
    return _without_setting(head, lines, words=2, single=single)


def _with_interval(difference: Difference, *, n: int) -> str:
    mean, interval = signed(difference)
    text = mean if interval == "-" else f"{mean} {interval}"
    return text if n == len(difference.seeds) else f"{text} (n = {len(difference.seeds)})"


def _without_setting(
    head: Sequence[str], lines: Sequence[Sequence[str]], *, words: int, single: bool
) -> str:
    """Return a table, without its first column if that says the same everywhere."""
    text = [i < words for i in range(len(head))]
    return markdown_table(head[single:], [row[single:] for row in lines], text=text[single:])


def markdown_table(
    head: Sequence[str], lines: Iterable[Sequence[str]], *, text: Sequence[bool]
) -> str:
    """Return a Markdown table.

    Args:
        head: Names of the columns.
        lines: Cells, escaped.
        text: For each column, whether it holds words; the others are right-aligned.
    """
    rule = ["---" if words else "---:" for words in text]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *lines))


def escape_markdown(text: str) -> str:
    """Return text from outside as it may stand in a cell of a table, showing as it is."""
    line = html.escape(" ".join(text.split()), quote=False)
    # Underscores within a word are no emphasis, and brackets without a target no link.
    return re.sub(r"([\\`*|$~]|(?<![^\W_])_|_(?![^\W_])|(?<=\])[(\[])", r"\\\1", line)


def replace_between(document: str, block: str, *, name: str = "results") -> str:
    """Return a document with the text between its two markers replaced.

    Args:
        document: Has ``<!-- NAME:begin -->`` and, after it, ``<!-- NAME:end -->``, once each.
        block: What is to stand between them.
        name: Name of the markers.

    Raises:
        MatrixError: If the markers are not there like that.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    counts = document.count(begin), document.count(end)
    if counts != (1, 1) or document.index(begin) > document.index(end):
        raise MatrixError(f"{begin} and, after it, {end} must stand there once, found {counts}")
    head, rest = document.split(begin)
    return f"{head}{begin}\n{block.strip()}\n{end}{rest.split(end)[1]}"
