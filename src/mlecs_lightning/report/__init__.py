"""Reports for people: the page of a run, its table in the terminal, the check of its data.

The names are imported on first use (PEP 562): `report` on the command line needs neither torch nor
Lightning, and starts without them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlecs_lightning.report.console import print_summary
    from mlecs_lightning.report.data_check import check_data

__all__ = ["check_data", "print_summary"]

_HOME = {"check_data": "data_check", "print_summary": "console"}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
