"""Trains a run from its start to its summary, with a checkpoint after each round."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mlecs_lightning.callbacks import FederatedCallback, RichProgress
from mlecs_lightning.federated.exchange.link import Link
from mlecs_lightning.federated.round_loop import RoundLoop
from mlecs_lightning.federated.run import Run
from mlecs_lightning.federated.settings import TrainerSettings
from mlecs_lightning.federated.summary import summary_of
from mlecs_lightning.rounds.failures import EvaluationError
from mlecs_lightning.rounds.signals import Interrupted, StopSignals

__all__ = ["Training"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """The training of one run.

    Attributes:
        run: The run.
        settings: The trainer's.
        callbacks: Called at the steps of the run.
    """

    run: Run
    settings: TrainerSettings
    callbacks: Sequence[FederatedCallback]

    def fit(self, link: Callable[[Run, StopSignals], Link] | None = None) -> dict[str, Any]:
        """Train, test and write the run folder; return the summary.

        Args:
            link: Makes the link to the devices; by default they are simulated in this process.
        """
        run = self.run
        self._call(
            "on_fit_start",
            max_rounds=self.settings.max_rounds,
            clients=run.federation.clients,
            folder=str(run.folder.path),
        )
        try:
            if run.restored:
                run.tell_changes()
                self._call("on_resume", history=tuple(run.history))
            with StopSignals() as stop:
                to_devices = None if link is None else link(run, stop)
                self._rounds(RoundLoop(run, self.settings.loop, self._call, stop, link=to_devices))
            # Before the test, which may fail.
            run.folder.write_adapters(run.federation)
            summary = summary_of(run, run.test())
            if len(run.history) < self.settings.max_rounds:
                # A callback has ended it: without this it would look as if rounds were missing.
                summary["planned"] = self.settings.max_rounds
            run.folder.write_summary(summary)
            run.folder.keep_artifacts()
            if run.fabric.is_global_zero:
                for remark in run.algorithm.remarks(run.history):
                    log.warning("%s", remark)
            self._call("on_fit_end", summary=summary)
            run.folder.close("success")
        except BaseException:
            run.folder.close("failed")
            raise
        finally:
            for callback in self.callbacks:
                if isinstance(callback, RichProgress):
                    callback.close()
        return summary

    def _rounds(self, loop: RoundLoop) -> None:
        """Warm up and run the rounds, with a checkpoint after each and wherever a signal stops."""
        run, saves = self.run, self.settings.checkpointing
        self._start(loop)
        state = run.state_dict() if saves else {}
        if saves:
            run.save_beginning(state, keep=self.settings.save_top_k)
        try:
            loop.stop_together()  # here, so that a signal does not cost the warm-up
            self._train(loop, state)
        except Interrupted as stopped:
            stopped.saved = saves
            raise

    def _train(self, loop: RoundLoop, state: dict[str, Any]) -> None:
        """Run the rounds that are left.

        Args:
            loop: The loop.
            state: The state before them, empty if nothing is saved.
        """
        run, saves = self.run, self.settings.checkpointing
        for number in range(run.next_round, self.settings.max_rounds):
            if any(callback.should_stop for callback in self.callbacks):
                break
            self._round(loop, number, state)
            if saves:
                state = run.state_dict()
                run.save(state, number, keep=self.settings.save_top_k)
            self._call("on_round_end", round=number, metrics=run.history[-1])
            loop.stop_together()

    def _start(self, loop: RoundLoop) -> None:
        """Warm up a run that starts from no checkpoint, and hand out its models."""
        if self.run.restored:
            return
        loop.warm_up(loaded=self.settings.warmup_ckpt_path is not None)
        self.run.federation.deliver(self.run.algorithm)

    def _round(self, loop: RoundLoop, number: int, before: dict[str, Any]) -> None:
        """Train a round; if it cannot end, save what has been done.

        Args:
            loop: The loop.
            number: The round.
            before: The state before the round, empty if nothing is saved.
        """
        run, keep = self.run, self.settings.save_top_k
        try:
            loop.round(number)
        except Interrupted:
            if self.settings.checkpointing:
                run.save(before, number, keep=keep, partial=run.partial_state())
                run.federation.store.drop_messages()
            raise
        except EvaluationError:
            if self.settings.checkpointing:
                run.save(run.state_dict(), number, keep=keep)
            raise

    def _call(self, hook: str, **facts: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(**facts)
