"""The report of some runs as one page of HTML, or as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from itertools import count

from jinja2 import Environment

from mlecs_lightning.report.drawing.svg import distinct_ids, swatch
from mlecs_lightning.report.hooks import algorithm_sections
from mlecs_lightning.report.markdown import escape_markdown, markdown_table
from mlecs_lightning.report.parts import Cell, Grid, Section, Setting, arrange
from mlecs_lightning.report.results.reading import ReportError, Run
from mlecs_lightning.report.sections import (
    classes,
    clients,
    configuration,
    continual,
    plots,
    pretraining,
    privacy,
    sweeps,
    tables,
)

__all__ = ["to_html", "to_markdown_page"]

_REFERENCE = "MLECS"


def to_html(runs: Sequence[Run], *, reference: str | None = None) -> str:
    """Return a page that needs nothing but itself: no script, no font, no request.

    Args:
        runs: At least one.
        reference: The algorithm that others are compared with; `MLECS` if it is there, else the
            first.

    Raises:
        ReportError: If no run has that algorithm.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.globals["swatch"] = swatch
    environment.globals["label_number"] = count(1).__next__  # names of regions must differ
    template = environment.from_string(
        files("mlecs_lightning.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    settings = arrange(runs, reference=_reference(runs, reference))
    page = template.render(
        title=title(runs),
        overview=tables.overview(runs),
        settings=[(s.label, _sections(s, settings, _reference(runs, reference))) for s in settings],
    )
    return distinct_ids(page)


def to_markdown_page(runs: Sequence[Run], *, reference: str | None = None) -> str:
    """Return the tables of the page as Markdown; see `to_html`."""
    chosen = _reference(runs, reference)
    lines = [f"# {escape_markdown(title(runs))}\n"]
    settings = arrange(runs, reference=chosen)
    for setting in settings:
        lines.append(f"## {escape_markdown(setting.label)}\n")
        for section in _sections(setting, settings, chosen, charts=False):
            lines += _markdown(section, level=3)
    lines += _markdown(tables.overview(runs), level=2)
    return "\n".join(lines)


def title(runs: Sequence[Run]) -> str:
    """Say what the report is of: algorithms by name, whatever the number of their variants."""
    methods = dict.fromkeys(run.method for run in runs)
    variants = dict.fromkeys(run.algorithm for run in runs)
    settings = list(dict.fromkeys(run.setting for run in runs))
    what = ", ".join(methods) if len(methods) <= 3 else f"{len(methods)} algorithms"
    if len(variants) > len(methods):
        what += f" ({len(variants)} variants)"
    where = settings[0] if len(settings) == 1 else f"{len(settings)} settings"
    number = "one run" if len(runs) == 1 else f"{len(runs)} runs"
    return f"{what} on {where}: {number}"


def _reference(runs: Sequence[Run], chosen: str | None) -> str:
    labels = list(dict.fromkeys(run.algorithm for run in runs))
    if chosen is not None and chosen not in labels:
        raise ReportError(
            f"--reference {chosen!r}: no run is of that algorithm; there are {labels}"
        )
    return chosen or (_REFERENCE if _REFERENCE in labels else labels[0])


def _sections(
    setting: Setting, settings: Sequence[Setting], reference: str, *, charts: bool = True
) -> list[Section]:
    wire = tables.communication(setting)
    found = [
        configuration.of_setting(setting, settings),
        tables.results(setting),
        configuration.of_rows(setting),
        tables.differences(setting, reference),
        *(plots.learning(setting) if charts else ()),
        *continual.continual(setting, charts=charts),
        *algorithm_sections(setting, charts=charts),
        *sweeps.sweeps(setting, charts=charts),
        plots.quality(setting) if charts else None,
        plots.quality_over_time(setting) if charts else None,
        Section("Communication", grids=[wire]) if wire else None,
        privacy.privacy(setting),
        classes.classes(setting),
        clients.clients(setting),
        pretraining.pretraining(setting),
        plots.volumes(setting) if charts else None,
        plots.alignment(setting) if charts else None,
        plots.aggregation(setting) if charts else None,
        tables.faults(setting),
    ]
    return [section for section in found if section]


def _markdown(section: Section, *, level: int) -> list[str]:
    lines = [f"{'#' * level} {escape_markdown(section.title)}\n"] if section.title else []
    if section.note:
        lines.append(f"{escape_markdown(section.note)}\n")
    for grid in section.grids:
        if grid.caption:
            lines.append(f"{escape_markdown(grid.caption)}\n")
        lines.append(_grid(grid))
        lines += [f"{escape_markdown(note)}\n" for note in grid.notes]
    return lines


def _grid(grid: Grid) -> str:
    # Markdown aligns columns one by one, but its headings have one row.
    head = [f"{c.over}: {c.name}" if c.over else c.name for c in grid.columns]
    return markdown_table(
        list(map(escape_markdown, head)),
        [list(map(_markdown_cell, row)) for row in grid.rows],
        text=[column.text for column in grid.columns],
    )


def _markdown_cell(cell: Cell) -> str:
    text = escape_markdown(cell.text)
    return f"**{text}**" if cell.best else text
