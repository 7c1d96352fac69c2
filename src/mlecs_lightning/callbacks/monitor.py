"""The value by which rounds are compared."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mlecs_lightning.errors import ConfigurationError

__all__ = ["Monitor", "MonitorMode", "check_mode", "unknown_value"]

MonitorMode = Literal["min", "max"]

# The scores of `TextMetrics`. Not a rule such as "all but losses": a callback may compare any value
# of a round, such as an aggregation error.
_SCORES = {
    *("accuracy", "macro_f1", "exact_match"),
    *("rouge_lsum", "rouge_lsum_mean", "bertscore", "bertscore_mean"),
}


@dataclass(frozen=True)
class Monitor:
    """A monitored value, and which direction is better.

    Attributes:
        name: Name of a value of a round, as in metrics.csv.
        mode: ``min`` if smaller values are better, ``max`` if larger ones are.
    """

    name: str
    mode: MonitorMode = "min"

    def __post_init__(self) -> None:
        """Check the mode.

        Raises:
            ValueError: If it is neither.
        """
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode of monitor {self.name!r} must be min or max, got {self.mode!r}")

    def gain(self, value: float, reference: float) -> float:
        """Return by how much a value is better than a reference; negative if it is worse."""
        return reference - value if self.mode == "min" else value - reference

    def ranked(self, history: Iterable[Mapping[str, float]]) -> list[int]:
        """Return the rounds with a finite value, best first; among equals the earliest first."""
        values = {
            int(row["round"]): row[self.name]
            for row in history
            if math.isfinite(row.get(self.name, math.nan))
        }
        return sorted(values, key=values.__getitem__, reverse=self.mode == "max")


def check_mode(key: str, monitor: Monitor) -> None:
    """Refuse the mode in which the worst loss or score would count as the best.

    Values with no known better direction pass.

    Args:
        key: The option that has the mode.
        monitor: The value and its mode.

    Raises:
        ConfigurationError: If the mode is wrong; it says which is right.
    """
    metric = monitor.name.rpartition("/")[2]
    if metric != "loss" and metric not in _SCORES:
        return
    right, better = ("min", "smaller") if metric == "loss" else ("max", "larger")
    if monitor.mode != right:
        raise ConfigurationError(
            f"{key} is {monitor.mode}, but a {better} {monitor.name} is better: set {key} to "
            f"{right}"
        )


def unknown_value(key: str, name: str, known: Iterable[str]) -> ConfigurationError:
    """Return the error for the name of a value that no round has.

    Args:
        key: The option that has the name.
        name: The name.
        known: The names that validation gives. Those of single clients are merged into one.
    """
    each = (re.sub(r"^clients/[^/]+/(?=\w+/)", "clients/NAME/", value) for value in known)
    return ConfigurationError(
        f"{key} {name!r} is no value of a round; validation gives {sorted(set(each))}"
    )
