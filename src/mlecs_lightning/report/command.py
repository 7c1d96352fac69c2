"""``report RUN...`` on the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.report.page import to_html, to_markdown_page
from mlecs_lightning.report.results.reading import ReportError, read_runs
from mlecs_lightning.storage.paths import expanded

__all__ = ["report"]


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
    form = given.format or ("md" if suffix in (".md", ".markdown") else "html")
    try:
        output = expanded(given.output or f"report.{form}", key="--output")
        render = to_html if form == "html" else to_markdown_page
        text = render(read_runs(given.runs), reference=given.reference)
        output.write_text(text, encoding="utf-8")
    except (ReportError, ConfigurationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: --output: cannot write {output}: {error}", file=sys.stderr)
        return 1
    print(output)
    return 0
