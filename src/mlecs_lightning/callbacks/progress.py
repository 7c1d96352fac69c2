"""A progress bar over rounds and clients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mlecs_lightning.callbacks.base import FederatedCallback

__all__ = ["RichProgress"]


class RichProgress(FederatedCallback):
    """Shows the progress in client updates, and the validation losses after each round."""

    def __init__(self, console: Console | None = None) -> None:
        """Choose the console; by default that of the process."""
        self._console = console or Console()
        self._bar: Progress | None = None

    def on_fit_start(self, *, max_rounds: int, clients: tuple[str, ...], folder: str) -> None:
        """Start the bar."""
        self._console.print(f"run folder: {folder}", markup=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("client updates"),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._rounds = max_rounds
        self._task = self._bar.add_task("warm-up of the server", total=max_rounds * len(clients))
        self._bar.start()

    def on_round_start(self, *, round: int, participants: tuple[str, ...]) -> None:
        """Name the round."""
        if self._bar:
            self._bar.update(
                self._task,
                completed=round * len(participants),
                total=self._rounds * len(participants),
                description=f"round {round + 1}/{self._rounds}",
            )

    def on_client_end(self, *, round: int, client: str, metrics: Mapping[str, float]) -> None:
        """Advance."""
        if self._bar:
            self._bar.advance(self._task)

    def on_client_fault(self, *, round: int, client: str, kind: str, reason: str) -> None:
        """Advance, and print why there is no update of the client."""
        if self._bar:
            self._bar.advance(self._task)
            self._bar.console.print(f"round {round + 1}: {kind}: {reason}", markup=False)

    def on_round_end(self, *, round: int, metrics: Mapping[str, float]) -> None:
        """Print one line for the round."""
        shown = {
            "clients": metrics.get("clients/val/loss", math.nan),
            "server": metrics.get("server/val/loss", math.nan),
        }
        losses = "  ".join(f"{k} {v:.4f}" for k, v in shown.items() if not math.isnan(v))
        if self._bar and losses:
            self._bar.console.print(f"round {round + 1}: validation loss  {losses}")

    def on_fit_end(self, *, summary: Mapping[str, Any]) -> None:
        """Stop the bar."""
        self.close()

    def close(self) -> None:
        """Stop the bar and restore the terminal, also after an error."""
        if self._bar:
            self._bar.stop()
            self._bar = None
