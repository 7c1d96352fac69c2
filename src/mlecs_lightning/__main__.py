"""The entry point of ``python cli.py``, ``mlecs`` and ``python -m mlecs_lightning``."""

import io
import sys

from mlecs_lightning.commands import run

__all__ = ["main"]


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments in place of ``sys.argv[1:]``.

    Returns:
        The exit code; see `mlecs_lightning.commands.run`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            # Characters outside the encoding are escaped instead of raising an error.
            stream.reconfigure(errors="backslashreplace")
    return run(sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    sys.exit(main())
