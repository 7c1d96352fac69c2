"""Early stopping on rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from mlecs_lightning.callbacks.base import FederatedCallback
from mlecs_lightning.callbacks.monitor import Monitor, MonitorMode, check_mode, unknown_value
from mlecs_lightning.errors import FaultList

__all__ = ["EarlyStopping"]


class EarlyStopping(FederatedCallback):
    """Stops when a value has not improved for several rounds; the arguments are Lightning's.

    A round without the value does not count: with ``check_val_every_n_rounds`` above 1, or, for the
    value of one client, where ``limit_eval_clients`` did not draw it. The state is a
    function of the rounds so far, so a resumed run stops where an uninterrupted one would have.
    """

    def __init__(
        self,
        monitor: str = "clients/val/loss",
        *,
        min_delta: float = 0.0,
        patience: int = 3,
        mode: MonitorMode = "min",
        check_finite: bool = True,
    ) -> None:
        """Choose the value and when to stop.

        Args:
            monitor: Name of a value of a round, as in metrics.csv.
            min_delta: Minimum change that counts as an improvement.
            patience: Number of rounds without an improvement after which to stop.
            mode: ``min`` if smaller values are better, ``max`` if larger ones are.
            check_finite: Stop as soon as the value is not finite.

        Raises:
            ConfigurationError: If a value is out of range, or the mode is wrong for the monitor.
        """
        faults = FaultList()
        if patience < 1:
            faults.append(f"EarlyStopping: patience must be at least 1, got {patience}")
        if not (min_delta >= 0 and math.isfinite(min_delta)):
            faults.append(f"EarlyStopping: min_delta must not be negative, got {min_delta}")
        try:
            self._by = Monitor(monitor, mode)
            check_mode("mode", self._by)
        except ValueError as error:
            faults.append(f"EarlyStopping: {error}")
        faults.raise_any()
        self.monitor, self.min_delta, self.patience = monitor, min_delta, patience
        self.mode, self.check_finite = mode, check_finite
        self._client = ""
        self._forget()

    def _forget(self) -> None:
        self.best_score = math.inf if self.mode == "min" else -math.inf
        """Best value so far."""
        self.wait_count = 0
        """Number of rounds since then."""
        self.stopped_round: int | None = None
        """The round after which it has stopped."""
        self._seen = False

    @property
    def should_stop(self) -> bool:
        """Whether the run should end."""
        return self.stopped_round is not None

    def on_fit_start(self, *, max_rounds: int, clients: tuple[str, ...], folder: str) -> None:
        """Reset the state."""
        self._forget()
        parts = (f"clients/{client}/" for client in clients)
        self._client = next((part for part in parts if self.monitor.startswith(part)), "")

    def on_resume(self, *, history: tuple[Mapping[str, float], ...]) -> None:
        """Count the earlier rounds."""
        for metrics in history:
            self._note(int(metrics["round"]), metrics)

    def on_round_end(self, *, round: int, metrics: Mapping[str, float]) -> None:
        """Compare the value with the best one.

        Raises:
            ConfigurationError: If the round was validated and does not have the value; it names
                those that it has.
        """
        reason = self._note(round, metrics)
        if reason is not None:
            rank_zero_info(f"stopped after round {round + 1}: {reason}")

    def on_fit_end(self, *, summary: Mapping[str, object]) -> None:
        """Warn if no round had the value."""
        if not self._seen:
            rank_zero_warn(
                f"EarlyStopping: no round had a {self.monitor!r}; is check_val_every_n_rounds 0?"
            )

    def _note(self, round: int, metrics: Mapping[str, float]) -> str | None:
        if self.should_stop:
            return None
        if self.monitor not in metrics:
            known = [name for name in metrics if "/val/" in name]
            if any(name.startswith(self._client) for name in known):
                key = "trainer.callbacks: EarlyStopping.monitor"
                raise unknown_value(key, self.monitor, known)
            return None
        value, self._seen = metrics[self.monitor], True
        if self.check_finite and not math.isfinite(value):
            self.stopped_round = round
            return f"{self.monitor} is {value}"
        if self._by.gain(value, self.best_score) > self.min_delta:
            self.best_score, self.wait_count = value, 0
            return None
        self.wait_count += 1
        if self.wait_count < self.patience:
            return None
        self.stopped_round = round
        return (
            f"{self.monitor} has not improved on {self.best_score:.4g} by more than "
            f"{self.min_delta:g} for {self.wait_count} rounds"
        )
