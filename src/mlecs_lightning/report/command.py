"""``report RUN...`` on the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.extras import Need, require
from mlecs_lightning.report.results.reading import ReportError, read_runs
from mlecs_lightning.storage.paths import expanded

__all__ = ["rendered", "report"]


def rendered(
    runs: Sequence[str | Path],
    *,
    form: Literal["html", "md"] = "html",
    reference: str | None = None,
) -> str:
    """Return the report of runs as a page.

    Args:
        runs: As on the command line.
        form: HTML, or Markdown without charts.
        reference: The algorithm that others are compared with.

    Raises:
        MissingExtraError: If the packages that draw and write it are not installed.
        ReportError: If a run cannot be read, or there is no such algorithm.
    """
    require(Need("a report", "report"))
    from mlecs_lightning.report.page import to_html, to_markdown_page

    render = to_html if form == "html" else to_markdown_page
    return render(read_runs(runs), reference=reference)


def report(args: Sequence[str]) -> int:
    """Write a report.

    Args:
        args: The arguments after ``report`` on the command line.

    Returns:
        0; 1 if a run cannot be read or the report cannot be written, which is printed.
    """
    parser = argparse.ArgumentParser(
        prog="mlecs report",
        allow_abbrev=False,
        description="Write one page with tables and charts of one or more runs; needs no network.",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="a run folder (runs/NAME/version_K), a folder of versions, or a file of JSON lines",
    )
    parser.add_argument(
        "--format",
        choices=("html", "md"),
        help="html or md; by default as --output ends, otherwise html",
    )
    parser.add_argument(
        "--output", type=Path, help="the file to write; by default report.html or report.md"
    )
    parser.add_argument(
        "--reference",
        help="the algorithm to compare the others with; by default MLECS, otherwise the first",
    )
    given = parser.parse_args(args)
    suffix = given.output.suffix if given.output else ""
    form: Literal["html", "md"] = given.format or (
        "md" if suffix in (".md", ".markdown") else "html"
    )
    try:
        output = expanded(given.output or f"report.{form}", key="--output")
        text = rendered(given.runs, form=form, reference=given.reference)
        output.write_text(text, encoding="utf-8")
    except (ReportError, ConfigurationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: --output: cannot write {output}: {error}", file=sys.stderr)
        return 1
    print(output)
    return 0
