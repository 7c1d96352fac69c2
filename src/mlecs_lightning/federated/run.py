"""The state of one run: its parts, its progress, and how both are saved and restored."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.pytorch.utilities import rank_zero_info

from mlecs_lightning.callbacks.monitor import Monitor
from mlecs_lightning.checkpoints.checkpoint import (
    CheckpointError,
    check_about,
    client_state,
    save_checkpoint,
)
from mlecs_lightning.checkpoints.timeline import last_round_of, prune_checkpoints, set_aside
from mlecs_lightning.clients.about import about
from mlecs_lightning.clients.federation import FederationModels
from mlecs_lightning.cohorts.registry import Cohorts
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.differences import arguments_of, untold_arguments
from mlecs_lightning.evaluation.continual import ContinualEvaluation
from mlecs_lightning.evaluation.parties import Evaluator
from mlecs_lightning.evaluation.scores import mean_rows
from mlecs_lightning.federated.exchange.outcome import Outcome
from mlecs_lightning.federated.run_folder import RunFolder
from mlecs_lightning.rounds.accounting import Accountant
from mlecs_lightning.rounds.algorithm import Algorithm, Loaders
from mlecs_lightning.rounds.bounds import Claims, Moves
from mlecs_lightning.rounds.failures import FailureLog
from mlecs_lightning.rounds.optimization import origin
from mlecs_lightning.wire.channel import Channel
from mlecs_lightning.wire.ledger import Ledger
from mlecs_lightning.wire.messages import Message, Scalar

__all__ = ["Run"]

log = logging.getLogger(__name__)


@dataclass
class Run:
    """The parts of a run, and its progress.

    Attributes:
        evaluator: Evaluates after a round.
        tester: Evaluates at the end, with all metrics.
        arguments: Those of the trainer that a resumed run must share, as plain data.
        moves: How far accepted updates have moved.
        claims: What clients have reported about themselves.
        accountant: Adds up the privacy loss, under ``trainer.privacy``.
        served: Outcomes of this process's clients in this round; the store keeps their messages.
        next_round: The next round to train.
        clock: Seconds from the start of the run to the end of each round; not in the history,
            whose bits must not depend on them.
        before: Seconds spent before the run was resumed.
        in_place: Whether a resumed run continues in the folder of its checkpoint.
        restored: Whether the run was resumed.
        changed: For each party, what a resumed run changes.
        ask_scores: Returns test scores, by client and view, that devices have measured themselves.
        cohorts: The clients that are trained and scored together; ``None`` if each is alone.
    """

    algorithm: Algorithm
    data: FederatedDataModule
    federation: FederationModels
    evaluator: Evaluator
    tester: Evaluator
    channel: Channel
    folder: RunFolder
    server_loaders: Loaders
    fabric: Fabric
    config: Mapping[str, Any]
    monitor: Monitor
    arguments: Mapping[str, Any] = field(default_factory=dict)
    in_place: bool = False
    accountant: Accountant | None = None
    ledger: Ledger = field(default_factory=Ledger)
    failures: FailureLog = field(default_factory=FailureLog)
    moves: Moves = field(default_factory=Moves)
    claims: Claims = field(default_factory=Claims)
    history: list[dict[str, float]] = field(default_factory=list)
    warmup: dict[str, float] = field(default_factory=dict)
    served: dict[str, Outcome] = field(default_factory=dict)
    next_round: int = 0
    clock: list[float] = field(default_factory=list)
    before: float = 0.0
    restored: bool = False
    changed: dict[str, list[str]] = field(default_factory=dict)
    ask_scores: Callable[[], Mapping[str, Mapping[str, Any]]] = dict
    cohorts: Cohorts | None = None
    _opened: float = field(default_factory=time.perf_counter, init=False)

    def __post_init__(self) -> None:
        """Let both evaluators write into the run's record of failures."""
        for evaluator in (self.evaluator, self.tester):
            evaluator.failures, evaluator.note = self.failures, self.folder.note
            evaluator.cohorts = self.cohorts

    @property
    def seconds(self) -> float:
        """Seconds spent so far, including those before the run was resumed."""
        return self.before + time.perf_counter() - self._opened

    @property
    def continual(self) -> ContinualEvaluation:
        """Evaluates the clients on every phase of the schedule."""
        return ContinualEvaluation(self.data)

    @property
    def last_round(self) -> int:
        """The last round that has been trained; 0 if there is none."""
        return int(self.history[-1]["round"]) if self.history else 0

    def test(self) -> dict[str, Any]:
        """Return the test scores of all parties."""
        results = self.tester.test(self.federation, round=self.last_round)
        clients = results["clients"]
        if asked := self.ask_scores():
            for client, views in asked.items():
                clients[client] |= views
            results["mean"] = {
                view: mean_rows(each[view] for each in clients.values()) for view in results["mean"]
            }
        return results

    def phase(self, client: str, round: int) -> str:
        """Return the name of a client's data in a round; data of one name do not change."""
        schedule = self.data.schedule
        return "all" if schedule is None else schedule.phase(client, round).name

    def claimed(self, message: Message) -> dict[str, Scalar]:
        """Return the scalars of an update that the client must not change later."""
        return {k: message.scalars[k] for k in self.algorithm.registers if k in message.scalars}

    # Between rounds all ranks hold the same, except that each holds the states of its own clients.

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the clients' states, as plain values and tensors on the CPU."""
        return {
            "names": list(self.federation.clients),
            "remote": self.federation.remote,
            "about": self._about(),
            "server": self.federation.server.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "ledger": self.ledger.state_dict(),
            "faults": self.failures.state_dict(),
            "moves": self.moves.state_dict(),
            "claims": self.claims.state_dict(),
            "history": list(self.history),
            "warmup": self.warmup,
            "monitor": self.monitor.name,
            "monitor_mode": self.monitor.mode,
            "config": dict(self.config),
            **({"privacy": self.accountant.state_dict()} if self.accountant else {}),
        }

    def _about(self) -> dict[str, Any]:
        """Return what it takes to rebuild the models and to compare a resumed run."""
        return {
            **about(self.algorithm, self.data, self.federation, self.fabric),
            "arguments": {
                "trainer": dict(self.arguments),
                "algorithm": arguments_of(self.algorithm),
                "data": arguments_of(self.data),
            },
            "frozen": self.federation.frozen,
        }

    def client_states(self) -> dict[str, Any]:
        """Return the states of all clients, from all ranks."""
        return self.federation.ranks.merge(self.federation.store.state_dict())

    def save(
        self,
        state: dict[str, Any],
        number: int,
        *,
        keep: int,
        partial: dict[str, Any] | None = None,
    ) -> None:
        """Write the checkpoint of a round, and delete those that need not be kept.

        Args:
            state: What `state_dict` returned.
            number: The round.
            keep: Number of best rounds whose checkpoints stay beside the newest; -1 for all.
            partial: What `partial_state` returned, for a round that has not ended.
        """
        clients, kept = self.client_states(), list[int]()
        failure: OSError | None = None
        if self.federation.ranks.rank == 0:
            folder = self.folder.checkpoints
            seconds = torch.tensor([*self.clock, self.seconds], dtype=torch.float64)
            rest = {"clients": clients, "seconds": seconds}
            if partial is not None:
                rest["partial"] = partial
            try:
                save_checkpoint(folder, state | rest, round=number, complete=partial is None)
                kept = prune_checkpoints(
                    folder, self.history, monitor=self.monitor, save_top_k=keep
                )
            except OSError as error:
                failure = error
        # All ranks wait for the file: Lightning kills rank 0 when another rank ends before it.
        kept, failure = self.federation.ranks.gather((kept, failure))[0]
        if failure is not None:
            raise failure
        if partial is None and keep >= 0:
            self.federation.store.prune(kept)

    def save_beginning(self, state: dict[str, Any], *, keep: int) -> None:
        """Write the checkpoint that the run starts from, unless it is in the run folder already.

        It is the state after the warm-up, which can be long, or a copy of a checkpoint from
        elsewhere. From then on ``last`` finds this run.

        Args:
            state: What `state_dict` returned.
            keep: As in `save`.
        """
        if self.in_place:
            return
        partial = self.partial_state()
        if partial or not self.next_round:
            self.save(state, self.next_round, keep=keep, partial=partial)
        else:
            self.save(state, self.next_round - 1, keep=keep)

    def partial_state(self) -> dict[str, Any]:
        """Return the outcomes of this round so far, from all ranks."""
        return self.federation.ranks.merge(
            {
                client: outcome.plain(self.federation.store.message(client) if outcome.up else None)
                for client, outcome in self.served.items()
            }
        )

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse to resume from a checkpoint of other settings, where no configuration tells.

        From Python, only the objects of a run say how they were set. What they do not say is
        logged.

        Raises:
            CheckpointError: If seed, classes, arguments or a party's settings differ.
        """
        if "about" not in state or (self.config and state["config"]):
            return
        saved, present = state["about"], self._about()
        untold = [
            f"{key}.init_args.{name}"
            for key, part in (("algorithm", self.algorithm), ("data", self.data))
            for name in untold_arguments(part)
        ]
        if "arguments" not in saved:
            del present["arguments"]
            untold = ["the arguments of trainer, algorithm and data (an earlier version wrote it)"]
        if untold:
            rank_zero_info(f"ckpt_path: not compared with the checkpoint: {', '.join(untold)}")
        check_about(saved, present)

    def restore(self, state: Mapping[str, Any], *, path: Path, same_data: bool = True) -> None:
        """Restore a checkpoint.

        Args:
            state: What `load_checkpoint` returned.
            path: Path of the checkpoint; the client files that it names are beside it.
            same_data: Whether what clients have reported about their data still holds.

        Raises:
            CheckpointError: If it does not fit the federation, or a file that it names is damaged.
        """
        federation = self.federation
        unlike = sorted(set(state["names"]) ^ set(federation.clients))
        if unlike:
            raise CheckpointError(f"ckpt_path: the checkpoint has other clients: {unlike}")
        if state.get("remote", False) != federation.remote:
            here, there = ("serve", "fit") if federation.remote else ("fit", "serve")
            raise CheckpointError(
                f"ckpt_path: the checkpoint was written by `mlecs {there}`, which keeps the states "
                f"of clients elsewhere than `mlecs {here}`: resume it with `mlecs {there}`"
            )
        partial = state.get("partial")
        try:
            server = state["server"]
            federation.server.load_state_dict(server | origin(state, "server", server))
            self.changed["server"] = federation.server.changed
            for client in federation.kept:
                if client in state["clients"]:
                    saved = client_state(state["clients"][client], path)
                    self._restore_client(client, saved, state)
                if not federation.remote:
                    self.changed[client] = federation.edge(client).changed
                if partial is not None and client in partial:
                    self._restore_outcome(client, partial[client])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"ckpt_path: the checkpoint is of other models: {error}"
            ) from error
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.ledger.load_state_dict(state["ledger"])
        self.failures.load_state_dict(state["faults"])
        self.moves.load_state_dict(state.get("moves", ()))
        if self.accountant is not None:
            self.accountant.load_state_dict(state.get("privacy"))
        if same_data:
            self.claims.load_state_dict(state.get("claims", ()))
        self.history, self.warmup = list(state["history"]), state["warmup"]
        self.next_round = int(state["round"]) + (partial is None)
        self.clock, self.before = clock_of(state["seconds"], len(self.history))
        self.restored = True

    def _restore_client(self, client: str, saved: dict[str, Any], state: Mapping[str, Any]) -> None:
        """Store the state of a client, or what the server remembers of a remote one."""
        if not self.federation.remote:
            saved |= origin(state, client, saved)
        self.federation.store.put(client, saved, round=last_round_of(client, state))

    def begin(self, checkpoint: Mapping[str, Any] | None) -> None:
        """Start writing to the run folder, once nothing can refuse the run any more.

        Args:
            checkpoint: The one that was restored, if there is one.
        """
        ranks = self.federation.ranks
        ranks.gather(None)  # all ranks have read the checkpoint
        if checkpoint is not None and self.in_place and ranks.rank == 0:
            aside = set_aside(self.folder.path, checkpoint)
            if aside is not None:
                rank_zero_info(f"what came after round {self.next_round} is now in {str(aside)!r}")
        ranks.gather(None)
        self.folder.start_log()
        if self.restored:
            self.folder.log(self.warmup, step=0)
        for row, seconds in zip(self.history, self.clock, strict=True):
            self.log_round(row, seconds)
        if self.config:
            self.folder.write_config(self.config, frozen=self.federation.frozen)

    def tell_changes(self) -> None:
        """Log what a resumed run changes, one line for all parties with the same changes."""
        alike: dict[str, list[str]] = {}
        for party, changes in self.changed.items():
            alike.setdefault("; ".join(changes), []).append(party)
        for said, parties in alike.items():
            if said:
                log.warning("ckpt_path: %s: %s", ", ".join(parties), said)

    def log_round(self, metrics: Mapping[str, float], seconds: float) -> None:
        """Log the metrics of a round, with the seconds of the run at its end."""
        timed = {} if math.isnan(seconds) else {"seconds": seconds}
        self.folder.log({**metrics, **timed}, step=int(metrics["round"]) + 1)

    def _restore_outcome(self, client: str, saved: Mapping[str, Any]) -> None:
        if saved["message"] is not None:
            self.federation.store.put_message(client, saved["message"].numpy().tobytes())
        self.served[client] = Outcome.of(client, saved)


def clock_of(seconds: torch.Tensor | float, rounds: int) -> tuple[list[float], float]:
    """Return the seconds at the end of each round, NaN if not known, and those of a checkpoint.

    Args:
        seconds: What the checkpoint has: all of them, or, from an earlier version, only the last.
        rounds: Number of rounds that have ended.
    """
    *timed, now = torch.as_tensor(seconds).flatten().tolist()
    return [math.nan] * (rounds - len(timed)) + timed, now
