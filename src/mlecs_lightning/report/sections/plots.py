"""The charts of a report: which curves there are, and of what."""

from __future__ import annotations

import math
import re
import statistics

from mlecs_lightning.report.drawing.charts import Curve, Point, curves, limits_of, points
from mlecs_lightning.report.drawing.series import (
    MOST_CLIENTS,
    Reader,
    Series,
    all_curves,
    described,
    extent,
    legend,
    logged_clients,
    mean_curve,
    of_metric,
    panels_of,
    spread_note,
)
from mlecs_lightning.report.labels import VIEWS
from mlecs_lightning.report.parts import Panel, Section, Setting
from mlecs_lightning.report.results.matrix import table
from mlecs_lightning.report.results.reading import Run

__all__ = ["aggregation", "alignment", "learning", "quality", "quality_over_time", "volumes"]

_MEASURES = {
    "volume_diagonal": "volume of a sample with its own anchor",
    "volume_off_diagonal": "volume with anchors of other samples",
    "gram_det": "determinant of a sample's own Gram matrix",
}


def learning(setting: Setting) -> list[Section]:
    """Show how validation scores and losses went, by client and server."""
    found = logged_clients(setting.runs, "val/[^/]+")
    names = found[:MOST_CLIENTS]
    few = f" {len(names)} of {len(found)} clients are shown." if len(found) > len(names) else ""
    sections: list[Section] = []
    for score, title in ((setting.main, setting.main_name), ("loss", "loss")):
        parties = {"mean of the clients": "clients/val", "server": "server/val"}
        parties |= {name: f"clients/{name}/val" for name in names}
        drawn = {
            party: all_curves(setting, of_metric(f"{path}/{score}"))
            for party, path in parties.items()
        }
        panels = panels_of(drawn, floor=0.0)
        if panels:
            note = (
                "On validation data: clients on their own domain. trainer.limit_val_batches may "
                f"have made that few samples.{spread_note(setting)}{few}"
            )
            sections.append(
                Section(
                    f"Learning curves: {title}",
                    note if not sections else "",
                    legend(setting, drawn.values()),
                    panels,
                )
            )
    return sections


def quality(setting: Setting) -> Section | None:
    """Show scores over the bytes that were sent for them."""
    at_end = _scores_over_bytes(setting)
    limits = limits_of(extent(point for series in at_end.values() for point in series))
    panels = [
        Panel(
            f"{VIEWS[metric.rpartition('.')[0]]}, at the end",
            points(series, x="bytes, both ways", limits=limits),
            described(series, in_bytes=True),
        )
        for metric, series in at_end.items()
    ]
    during = [c for c in all_curves(setting, _over_bytes(setting.main)) if max(c.x) > 0]
    if during:
        chart = curves(
            during, x="bytes, both ways", limits=limits_of(extent(during)), in_bytes=True
        )
        panels.append(
            Panel("clients, validation, round by round", chart, described(during, in_bytes=True))
        )
    if not panels:
        return None
    note = (
        f"{setting.main_name} over the bytes of all clients and rounds, up and down. The y axes do "
        "not begin at zero."
    )
    return Section(
        "Quality against bytes", note, legend(setting, [*at_end.values(), during]), panels
    )


def _scores_over_bytes(setting: Setting) -> dict[str, list[Point]]:
    """Return a point for each algorithm, by metric; none where there is nothing to compare."""
    drawn: dict[str, list[Point]] = {}
    ways = ("communication.uplink_bytes", "communication.downlink_bytes")
    metrics = [f"{view}.{setting.main}" for view in ("mean.all", "mean.own", "server")]
    styles = {group.label: group.style for group in setting.groups}
    for entry in table(setting.rows, [*ways, *metrics]):
        sent = [stat.mean for way in ways if (stat := entry.stats[way])]
        if len(sent) < len(ways):
            continue
        for metric in metrics:
            if stat := entry.stats[metric]:
                point = Point(styles[entry.algorithm], math.fsum(sent), stat.mean, stat.std or 0.0)
                drawn.setdefault(metric, []).append(point)
    several = {metric: series for metric, series in drawn.items() if len(series) > 1}
    return several if any(point.x for series in several.values() for point in series) else {}


def quality_over_time(setting: Setting) -> Section | None:
    """Show scores over the seconds that were spent for them, round by round."""
    drawn = all_curves(setting, _over_seconds(setting.main))
    if not drawn:
        return None
    chart = curves(drawn, x="seconds", limits=limits_of(extent(drawn)))
    note = (
        f"{setting.main_name} of the clients on validation data, over the seconds of the run up to "
        "the end of each round, warm-up and validation included; what else the machine did counts, "
        f"too. The y axis does not begin at zero.{spread_note(setting)}"
    )
    panels = [Panel("clients, validation, round by round", chart, described(drawn))]
    return Section("Quality against seconds", note, legend(setting, [drawn]), panels)


def _over_seconds(score: str) -> Reader:
    key = f"clients/val/{score}"
    return lambda run: [
        (at["step"], at["seconds"], at[key]) for at in run.history if key in at and "seconds" in at
    ]


def _over_bytes(score: str) -> Reader:
    def read(run: Run) -> Series:
        ways = [f"communication/{way}_bytes" for way in ("uplink", "downlink")]
        return [
            (at["step"], sum(at[way] for way in ways), at[f"clients/val/{score}"])
            for at in run.history
            if f"clients/val/{score}" in at and all(way in at for way in ways)
        ]

    return read


def volumes(setting: Setting) -> Section | None:
    """Show the volumes of the contrastive loss, of clients and server."""
    drawn: dict[str, list[Curve]] = {}
    for group in setting.groups:
        for party, pattern in (("clients", r"clients/.+/[^/]+/"), ("server", r"server/[^/]+/")):
            series = [
                curve
                for style, measure in enumerate(_MEASURES)
                if (curve := mean_curve(group, _mean_of(pattern + measure), style))
            ]
            if series:
                of = "mean of the clients" if party == "clients" else "server"
                drawn[f"{group.label}: {of}"] = series
    panels = panels_of(drawn, floor=0.0)
    if not panels:
        return None
    note = (
        "Volumes lie between 0, all vectors agree, and 1, all are orthogonal. The contrast works "
        "if the first line lies below the second; if all three fall to 0, the vectors have "
        f"collapsed.{spread_note(setting)}"
    )
    return Section("Volumes", note, list(enumerate(_MEASURES.values())), panels)


def alignment(setting: Setting) -> Section | None:
    """Show the cosines of fused representations with their anchors, of clients and server."""
    found = logged_clients(setting.runs, "[^/]+/cosine")
    names = found[:MOST_CLIENTS]
    few = f" {len(names)} of {len(found)} clients are shown." if len(found) > len(names) else ""
    patterns = {name: rf"clients/{re.escape(name)}/[^/]+/cosine" for name in names}
    patterns["server, LLM"] = r"server/[^/]+/cosine_llm"
    patterns["server, SLM"] = r"server/[^/]+/cosine_slm"
    drawn = {party: all_curves(setting, _mean_of(pattern)) for party, pattern in patterns.items()}
    panels = panels_of(drawn)
    if not panels:
        return None
    note = (
        "Cosine of the fused representation f with its anchor: 1 where they have one direction, "
        "below 0 where they point away from each other. A volume is small in both cases, and for "
        f"any anchor in the span of the vectors.{spread_note(setting)}{few}"
    )
    return Section("Alignment", note, legend(setting, drawn.values()), panels)


def _mean_of(pattern: str) -> Reader:
    """Return a reader of the mean of all metrics whose names fit."""

    def read(run: Run) -> Series:
        series: Series = []
        for at in run.history:
            values = [number for key, number in at.items() if re.fullmatch(pattern, key)]
            if values:
                series.append((at["step"], at["step"], statistics.fmean(values)))
        return series

    return read


def aggregation(setting: Setting) -> Section | None:
    """Show how far the average of adapters is from the average of what they do.

    Nothing, if it is nowhere more than zero: `CDCCA` and `ECLM` average no A and B.
    """
    drawn = {"": [c for c in all_curves(setting, _aggregation_error) if any(c.y)]}
    if not drawn[""]:
        return None
    note = (
        "Relative error of the aggregated adapter: the product of the averages of A and B is not "
        f"the average of the products BA.{spread_note(setting)}"
    )
    return Section(
        "Aggregation error",
        note,
        legend(setting, drawn.values()),
        [Panel("relative error", each.chart, each.series) for each in panels_of(drawn, floor=0.0)],
    )


def _aggregation_error(run: Run) -> Series:
    if run.history:
        return of_metric("aggregate/error")(run)
    errors = (run.summary or {}).get("aggregation_error") or []
    # With rounds left out, the list does not say which.
    return [(i, i, e) for i, e in enumerate(errors, start=1)] if len(errors) == run.rounds else []
