"""What a run shows to people."""

from mlecs_lightning.report.console import print_summary
from mlecs_lightning.report.data_check import check_data

__all__ = ["check_data", "print_summary"]
