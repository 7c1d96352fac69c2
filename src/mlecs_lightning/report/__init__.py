"""Reports for people: the page of a run, its table in the terminal, the check of its data.

The names are imported on first use (PEP 562): `report` on the command line needs neither torch nor
Lightning, and starts without them.
"""

from typing import TYPE_CHECKING

from mlecs_lightning.lazy import lazy_names

if TYPE_CHECKING:
    from mlecs_lightning.report.console import print_summary, print_validation
    from mlecs_lightning.report.data_check import check_data

__all__ = ["check_data", "print_summary", "print_validation"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"check_data": "data_check", "print_summary": "console", "print_validation": "console"},
)
