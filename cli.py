"""Shim for a checkout: `python cli.py fit --config ...` is the installed command `mlecs`."""

import sys

from mlecs_lightning.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
