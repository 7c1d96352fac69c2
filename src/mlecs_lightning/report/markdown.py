"""Markdown: tables, text from outside in them, and blocks between markers in a document."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence, Set

from mlecs_lightning.report.labels import NOTHING, heading, seeds
from mlecs_lightning.report.results.budget import MARKED
from mlecs_lightning.report.results.matrix import Difference, Entry, best, cell, signed, unmatched
from mlecs_lightning.report.results.rows import MatrixError

__all__ = ["escape_markdown", "markdown_table", "replace_between", "to_markdown"]


def to_markdown(content: Sequence[Entry] | Sequence[Difference], *, counted: str = "seeds") -> str:
    """Return a Markdown table, the best of each column, setting and budget in bold.

    Below it stands whose budget nobody has, if there is such a row.

    Args:
        content: What `table` or `paired` returned; several results of `paired` can be joined.
        counted: Heading of the last column, where runs differ in something else than the seed.

    Returns:
        The table, ending in a newline; an empty string for no content.
    """
    entries = [each for each in content if isinstance(each, Entry)]
    differences = [each for each in content if isinstance(each, Difference)]
    return _entries(entries, counted) if entries else _differences(differences, counted)


def _entries(entries: Sequence[Entry], counted: str) -> str:
    if not entries:
        return ""
    metrics = [m for m in entries[0].stats if any(e.stats.get(m) for e in entries)]
    by_setting: dict[str, list[Entry]] = {}
    for entry in entries:
        by_setting.setdefault(entry.setting, []).append(entry)
    differ = any(entry.differs for entry in entries)
    lines = []
    for rivals in by_setting.values():
        marked = {metric: best(rivals, metric) for metric in metrics}
        for i, entry in enumerate(rivals):
            count = len(entry.seeds)
            shown = [cell(metric, entry.stats.get(metric), n=count) for metric in metrics]
            lines.append(
                [
                    escape_markdown(entry.setting),
                    escape_markdown(entry.algorithm) + (" (ceiling)" if entry.ceiling else ""),
                    *(
                        f"**{text}**" if i in marked[metric] else text
                        for metric, text in zip(metrics, shown, strict=True)
                    ),
                    seeds(count),
                    *([escape_markdown(entry.differs)] if differ else []),
                ]
            )
    head = ["setting", "algorithm", *map(heading, metrics), counted]
    head += ["differs from the first in"] if differ else []
    notes = [
        ("" if len(by_setting) == 1 else f"{escape_markdown(setting)}: ") + escape_markdown(note)
        for setting, rivals in by_setting.items()
        if (note := unmatched(rivals))
    ]
    drawn = _without_setting(
        head, lines, words={0, 1, 3 + len(metrics)}, single=len(by_setting) == 1
    )
    return "\n".join([drawn, *(f"{note}\n" for note in ([MARKED, *notes] if notes else []))])


def _differences(differences: Sequence[Difference], counted: str) -> str:
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
        count = max(len(each.seeds) for each in found.values())
        cells = [_with_interval(found[m], n=count) if m in found else NOTHING for m in metrics]
        lines.append([*map(escape_markdown, pair), *cells, seeds(count)])
    head = ["setting", "difference", *map(heading, metrics), counted]
    single = len({each.setting for each in differences}) == 1
    return _without_setting(head, lines, words={0, 1}, single=single)


def _with_interval(difference: Difference, *, n: int) -> str:
    mean, interval = signed(difference)
    text = mean if interval == "-" else f"{mean} {interval}"
    return text if n == len(difference.seeds) else f"{text} (n = {len(difference.seeds)})"


def _without_setting(
    head: Sequence[str], lines: Sequence[Sequence[str]], *, words: Set[int], single: bool
) -> str:
    """Return a table, without its first column if that says the same everywhere."""
    text = [i in words for i in range(len(head))]
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
