"""What a run shows to people."""

from mlecs_lightning.report.console import print_summary

__all__ = ["print_summary"]
