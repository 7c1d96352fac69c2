"""The tables of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from mlecs_lightning.report.drawing.charts import interval
from mlecs_lightning.report.labels import SCORES, VIEWS, heading, seeds, size
from mlecs_lightning.report.parts import Cell, Column, Grid, Section, Setting
from mlecs_lightning.report.results.budget import MARKED
from mlecs_lightning.report.results.matrix import (
    Difference,
    Entry,
    best,
    cell,
    paired,
    signed,
    table,
    unmatched,
    value,
)
from mlecs_lightning.report.results.reading import Run

__all__ = [
    "communication",
    "differences",
    "faults",
    "overview",
    "results",
]

_VIEWS = {"mean.all": "all", "mean.own": "own", "server": "server"}
# Exact match is shown where there is no other score.
_NAMES = {**SCORES, "exact_match": "exact match"}
_BYTES = ("communication.uplink_bytes", "communication.downlink_bytes")
_EVENTS = 100  # a longer list nobody reads; summary.json has them all
_TOLD = ("round", "client", "kind", "stage", "error")
_NONE = "-"  # no number is asked there


def overview(runs: Sequence[Run]) -> Section:
    """List the runs and how far they came."""
    last = {(run.setting, run.algorithm, run.seed): run for run in runs if run.finished}
    rows = []
    for run in runs:
        of = "" if run.planned in (None, run.rounds) else f" of {run.planned}"
        state = "finished"
        if not run.finished:
            state = "unfinished"
        elif last[run.setting, run.algorithm, run.seed] is not run:
            state = "done again: not counted"
        seconds = run.summary.get("seconds") if run.summary else None
        rows.append(
            [
                Cell(run.place),
                Cell(run.setting),
                Cell(run.algorithm),
                Cell(_NONE if run.seed is None else str(run.seed)),
                Cell(f"{run.rounds}{of}"),
                Cell(_NONE if seconds is None else f"{seconds:.0f}"),
                Cell(run.commit or _NONE),
                Cell(state),
            ]
        )
    names = ("run", "setting", "algorithm", "seed", "rounds", "seconds", "commit", "state")
    columns = [Column(n, text=n not in ("seed", "rounds", "seconds")) for n in names]
    kept = [i for i in range(len(columns)) if names[i] != "commit" or any(r.commit for r in runs)]
    grid = Grid([columns[i] for i in kept], [[row[i] for i in kept] for row in rows])
    return Section("Runs", grids=[grid])


def results(setting: Setting) -> Section | None:
    """Show scores and bytes by algorithm: the main score with the bytes, then the other scores."""
    scores = [
        score
        for score in sorted(
            SCORES if setting.main in SCORES else _NAMES, key=lambda score: score != setting.main
        )
        if any(value(row, f"{view}.{score}") is not None for row in setting.rows for view in _VIEWS)
    ]
    metrics = [f"{view}.{score}" for score in scores for view in _VIEWS]
    entries = _entries(setting, [*metrics, *_BYTES])
    metrics = [m for m in metrics if any(e.stats[m] for e in entries)]
    first = [m for m in metrics if m.endswith(f".{setting.main}")]
    others = [m for m in metrics if m not in first]
    note = (
        "Test scores. all: clients on held-out data of all domains, in the modalities that each "
        "has, mean over the clients; own: the same on held-out data of their own domain; server: "
        "the server on all domains. Bytes are those of all clients and rounds."
    )
    if any(stat and stat.std is not None for e in entries for stat in e.stats.values()):
        note += " ± is the standard deviation over the seeds (n - 1)."
    note += _budget_note(entries, metrics)
    grids = [_scores(setting, entries, [*first, *_BYTES], unfinished=True)]
    if others:
        grids.append(_scores(setting, entries, others))
    return Section("Results", note, grids=grids)


def _budget_note(entries: Sequence[Entry], scores: Sequence[str]) -> str:
    """Say what bold means, and of which rows it says nothing; empty where there are no rivals."""
    note = ""
    marked = any(best(entries, score) for score in scores)
    if marked or any(best(entries, way) for way in _BYTES):
        note += (
            f" {MARKED} Of bytes it is the fewest of those that send any; a ceiling, which has all "
            "data in one place, is no rival. Bold does not say that the difference is more than "
            "chance."
        )
    if alone := unmatched(entries):
        note += f" {alone}" if marked else f" No score is bold. {alone}"
    return note


def _scores(
    setting: Setting, entries: Sequence[Entry], metrics: Sequence[str], *, unfinished: bool = False
) -> Grid:
    """Return a table of metrics, and below it what they are to be compared with."""
    marked = {metric: best(entries, metric) for metric in metrics}
    differ = any(entry.differs for entry in entries)
    rows = [
        [
            Cell(entry.algorithm + (" (ceiling)" if entry.ceiling else "")),
            *([Cell(entry.differs)] if differ else []),
            Cell(seeds(len(entry.seeds))),
            *(Cell(cell(m, entry.stats[m], n=len(entry.seeds)), i in marked[m]) for m in metrics),
        ]
        for i, entry in enumerate(entries)
    ]
    beside = [Cell("")] if differ else []
    aside = _constant(setting, metrics, beside) if entries else []
    columns = [Column("algorithm", text=True)]
    if differ:
        columns.append(Column("differs from the first in", text=True))
    columns.append(Column("seeds"))
    for metric in metrics:
        view, _, score = _split(metric)
        columns.append(
            Column(heading(metric).split()[-1], "bytes")
            if metric in _BYTES
            else Column(_VIEWS[view], _NAMES[score])
        )
    span = range(len(rows), len(rows) + len(aside))
    notes = _unfinished(setting) if unfinished else []
    return Grid(columns, [*rows, *aside], aside=frozenset(span), notes=notes)


def _unfinished(setting: Setting) -> list[str]:
    """Return a footnote on the runs that have no test scores yet."""
    found = [
        f"{group.label.removesuffix(', unfinished')} after "
        f"{_span([run.rounds for run in group.runs])} (seeds: {len(group.runs)})"
        for group in setting.groups
        if not any(run.finished for run in group.runs)
    ]
    return [f"Not finished, so not in this table: {'; '.join(found)}."] if found else []


def _split(metric: str) -> tuple[str, str, str]:
    return metric.rpartition(".")


def _entries(setting: Setting, metrics: Sequence[str]) -> list[Entry]:
    return table(setting.rows, metrics, order=[group.label for group in setting.groups])


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{high} round{'s' * (high != 1)}" if low == high else f"{low} to {high} rounds"


def _constant(setting: Setting, metrics: Sequence[str], beside: Sequence[Cell]) -> list[list[Cell]]:
    """Return the row of the best constant sentence, if the runs have it."""
    paths = {
        metric: metric.replace("mean.", "constant.")
        if metric.startswith("mean.")
        else f"constant.{metric}"
        for metric in metrics
    }
    found = {
        m: [number for row in setting.rows if (number := value(row, path)) is not None]
        for m, path in paths.items()
    }
    if not any(found.values()):
        return []
    means = [f"{fmean(found[m]):.3f}" if found[m] else "" for m in metrics]
    return [[Cell("best constant sentence"), *beside, Cell(""), *map(Cell, means)]]


def differences(setting: Setting, reference: str) -> Section | None:
    """Show how each algorithm differs from a reference, seed by seed."""
    labels = [entry.algorithm for entry in _entries(setting, [])]
    metrics = [f"{view}.{setting.main}" for view in _VIEWS]
    if reference not in labels:
        return None
    found = {
        (label, metric): each
        for label in labels
        if label != reference
        for metric in metrics
        for each in paired(setting.rows, reference, label, metric)
    }
    ends = [abs(x) for d in found.values() for x in (d.low, d.high) if x is not None]
    if not ends:
        return None
    columns = [Column("algorithm", text=True)]
    for metric in metrics:
        over = VIEWS[_split(metric)[0]]
        columns += [
            Column("difference", over),
            Column("95 % interval", over),
            Column("seeds", over),
        ]
    rows = [
        [
            Cell(label),
            *(
                each
                for metric in metrics
                for each in _difference(found.get((label, metric)), reach=1.05 * max(ends))
            ),
        ]
        for label in labels
        if any((label, metric) in found for metric in metrics)
    ]
    note = (
        f"{setting.main_name} of an algorithm minus that of {reference}, over the seeds that both "
        "have: mean and 95 % interval of Student's t. An interval that holds zero shows no "
        "difference. Nothing is corrected for the number of comparisons."
    )
    return Section(f"Differences from {reference}", note, grids=[Grid(columns, rows)])


def _difference(each: Difference | None, *, reach: float) -> list[Cell]:
    if each is None:
        return [Cell(_NONE), Cell(_NONE), Cell("0")]
    mean, span = signed(each)
    chart = ""
    if each.low is not None and each.high is not None:
        chart = interval(each.mean, each.low, each.high, reach=reach or 1.0)
    return [Cell(mean), Cell(span, chart=chart), Cell(str(len(each.seeds)))]


def communication(setting: Setting) -> Grid | None:
    """Show what went over the wire, and what share of the models that is."""
    ratios = [
        f"communication.ratio_of_{whose}_parameters.{way}"
        for whose in ("edge", "server")
        for way in ("uplink", "downlink")
    ]
    entries = [
        entry
        for entry in _entries(setting, [*_BYTES, *ratios])
        if any(stat and stat.mean for stat in entry.stats.values())
    ]
    if not entries:
        return None
    parts = _parts(setting)
    rows = [
        [
            Cell(entry.algorithm),
            *(
                each
                for way, metric in zip(("uplink", "downlink"), _BYTES, strict=True)
                for each in (
                    Cell(cell(metric, entry.stats[metric])),
                    Cell(parts[entry.algorithm].get(way, _NONE)),
                )
            ),
            *(Cell(cell(metric, entry.stats[metric])) for metric in ratios),
        ]
        for entry in entries
    ]
    columns = [Column("algorithm", text=True)]
    for way in ("up", "down"):
        columns += [Column("bytes", way), Column("of it", way, text=True)]
    columns += [
        Column(heading(m).split(" / ")[0], f"a client's round / {_split(m)[0].split('_')[2]} model")
        for m in ratios
    ]
    return Grid(columns, rows)


def _parts(setting: Setting) -> dict[str, dict[str, str]]:
    """Return bytes by component, of one run of each algorithm."""
    found: dict[str, dict[str, str]] = {}
    for row in setting.rows:
        by_component = row.summary.get("communication", {}).get("by_component", {})
        found[row.algorithm] = {
            way: ", ".join(f"{name} {size(count)}" for name, count in parts.items())
            for way, parts in by_component.items()
            if parts
        }
    return found


def faults(setting: Setting) -> Section | None:
    """Show what went wrong with clients."""
    counted: dict[str, dict[str, int]] = {}
    kinds: dict[str, None] = {}
    for row in setting.rows:
        counts = counted.setdefault(row.algorithm, {})
        for kind, number in row.summary.get("faults", {}).items():
            if isinstance(number, int) and number:
                kinds[kind] = None
                counts[kind] = counts.get(kind, 0) + number
    if not kinds:
        return None
    columns = [Column("algorithm", text=True), *map(Column, kinds)]
    summed = [
        [Cell(label), *(Cell(str(counts.get(kind, 0))) for kind in kinds)]
        for label, counts in counted.items()
        if counts
    ]
    grids = [Grid(columns, summed, caption="By kind, over all seeds")]
    events = list(_events(setting))
    if events:
        caption = "What happened"
        if len(events) > _EVENTS:
            caption += f": the first {_EVENTS} of {len(events):,}; summary.json has all"
        names = ("algorithm", "seed", *_TOLD)
        columns = [Column(name, text=name not in ("seed", "round")) for name in names]
        grids.append(Grid(columns, events[:_EVENTS], caption=caption))
    note = (
        "Clients that gave nothing in a round: dropout - were not there; straggler - missed the "
        "deadline; crash - stopped in the middle; error - their code raised; refused - their "
        "message was not accepted. Rounds count from 0, as in summary.json. The texts of errors "
        "are in clients/NAME/errors.log of the run folder."
    )
    return Section("Faults", note, grids=grids)


def _events(setting: Setting) -> Iterator[list[Cell]]:
    for row in setting.rows:
        for event in row.summary.get("faults", {}).get("events", []):
            if isinstance(event, Mapping):
                told = [event.get(key, "?") for key in _TOLD]
                yield [Cell(str(x)) for x in (row.algorithm, row.seed, *told)]
