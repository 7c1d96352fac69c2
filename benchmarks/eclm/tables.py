"""Tables of the studies with many devices, in Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from scipy.stats import t as student

from benchmarks.eclm.many import METHODS, STAGES
from benchmarks.harness import spread

__all__ = ["blocks"]

_OURS = ("ECLM", "ECLM, stage 2")
_RIVALS = tuple(name for name in METHODS if name not in _OURS)
_ALONE = ("no adaptation", "local adaptation")

Rows = Sequence[dict[str, Any]]


def blocks(rows: Rows) -> dict[str, str]:
    """Return the Markdown of each study that has lines, by name."""
    of = {kind: [r for r in rows if r["kind"] == kind] for kind in ("many", "size", "cloud")}
    made = {"devices": _many(of["many"]), "sizes": _sizes(of["size"], of["cloud"])}
    return {name: text for name, text in made.items() if text}


def _origin(rows: Rows) -> str:
    said = {key: ", ".join(sorted({str(r[key]) for r in rows})) for key in ("commit", "hardware")}
    seeds = ", ".join(map(str, sorted({r["seed"] for r in rows})))
    each = [r["processor_seconds"] for r in rows]
    return (
        f"Commit {said['commit']}; seeds {seeds}; {said['hardware']}; {len(each)} runs on one "
        f"thread each, {spread(each, '{:.0f}')} s of the processor (median, range), "
        f"{sum(each) / 60:.1f} minutes in all."
    )


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    every = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in every)


def _mean(values: Sequence[float]) -> str:
    some = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{some}"


def _difference(one: dict[int, float], other: dict[int, float]) -> str:
    """Return the mean difference over common seeds, with the 95 % interval of Student's t."""
    each = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
    if len(each) < 2:
        return f"{each[0]:+.3f}" if each else "-"
    mean, half = statistics.fmean(each), statistics.stdev(each) / math.sqrt(len(each))
    half *= float(student.ppf(0.975, len(each) - 1))
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"


def sent(row: dict[str, Any]) -> float:
    """Return the bytes of a run both ways, in a method that merges nothing without the modules."""
    total = row["uplink_bytes"] + row["downlink_bytes"]
    unused = row["by_component"]["uplink"].get("modules", 0) if row["method"] in _ALONE else 0
    return float(total - unused)


def _many(rows: Rows) -> str:
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        scores.setdefault(row["method"], {})[row["seed"]] = row["accuracy"]
    if not scores:
        return ""
    volume = {n: statistics.fmean(sent(r) for r in rows if r["method"] == n) for n in scores}
    lines = []
    for name in (n for n in METHODS if n in scores):
        own = [r for r in rows if r["method"] == name]
        held = [r["modules"] for r in own if r["modules"] is not None]
        ratios = [
            f"{volume[rival] / volume[name]:.2f}" if rival in volume else "-"
            for rival in ("FedAvg of full weights", "FedAvg of adapters")
        ]
        server = _mean([r["server"] for r in own])
        modules = f"{statistics.fmean(held):.1f}" if held else "whole"
        size = f"{volume[name] / 1e6:.2f} MB"
        score = _mean(list(scores[name].values()))
        lines.append([name, score, server, modules, size, *ratios, str(len(own))])
    head = ["method", "devices' accuracy", "cloud", "modules", "bytes up + down"]
    head += ["full weights / it", "adapters / it", "seeds"]
    text = f"{_origin(rows)}\n\n{_table(head, lines)}"
    known = [name for name in _RIVALS if name in scores]
    ours = [name for name in _OURS if name in scores]
    if not known or not ours:
        return text
    best = max(known, key=lambda name: statistics.fmean(scores[name].values()))
    compared = [
        [
            name,
            _difference(scores[name], scores.get("no adaptation", {})),
            _difference(scores[name], scores[best]),
        ]
        for name in ours
    ]
    head = ["method", "minus no adaptation", f"minus the best rival, {best}"]
    return f"{text}\n\n{_table(head, compared)}"


def _sizes(rows: Rows, clouds: Rows) -> str:
    scores: dict[tuple[str, bool, float], dict[int, float]] = {}
    for r in rows:
        scores.setdefault((r["arm"], r["tuned"], r["share"]), {})[r["seed"]] = r["accuracy"]
    if not scores:
        return ""
    lines = []
    for tuned, share in sorted({(tuned, share) for _, tuned, share in scores}):
        each = [scores.get((arm, tuned, share), {}) for arm in STAGES]
        shown = [_mean(list(values.values())) if values else "-" for values in each]
        one, plain, two = each
        state = "tuned" if tuned else "as derived"
        gains = [_difference(two, one), _difference(two, plain)]
        lines.append([state, f"{share:g}", *shown, *gains, str(len(two))])
    head = ["sub-model", "share", "stage 1", "lambda 0", "stage 2"]
    head += ["stage 2 - stage 1", "stage 2 - lambda 0", "seeds"]
    minutes = sum(r["processor_seconds"] for r in clouds) / 60
    trained = f"The {len(clouds)} clouds of both tables took {minutes:.1f} minutes more."
    return f"{_origin(rows)} {trained}\n\n{_table(head, lines)}"
