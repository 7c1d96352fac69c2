"""The entry point of all commands: ``python cli.py``, ``mlecs`` and ``python -m mlecs_lightning``.

It is separate from `mlecs_lightning.cli`, which takes seconds to import and which a report does not
need.
"""

import io
import sys

__all__ = ["main"]


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments in place of ``sys.argv[1:]``.

    Returns:
        The exit code; see `mlecs_lightning.cli.main` and `mlecs_lightning.report.command.report`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            # Characters outside the encoding are escaped instead of raising an error.
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if args is None else args
    if words[:1] == ["report"]:
        from mlecs_lightning.report.command import report

        return report(words[1:])
    from mlecs_lightning.cli import main as run

    return run(args)


if __name__ == "__main__":
    sys.exit(main())
