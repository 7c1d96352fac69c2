"""Everything that belongs to one call of a trainer, and how it is saved and restored."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from lightning.pytorch.utilities import rank_zero_info

from mlecs_lightning.callbacks.monitor import Monitor
from mlecs_lightning.checkpoints.checkpoint import (
    CheckpointError,
    check_config,
    client_state,
    save_checkpoint,
)
from mlecs_lightning.checkpoints.timeline import last_round_of, prune_checkpoints, set_aside
from mlecs_lightning.clients.federation import Federation
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.differences import alike
from mlecs_lightning.evaluation.continual import Stream
from mlecs_lightning.evaluation.parties import Evaluator
from mlecs_lightning.federated.run_folder import RunFolder
from mlecs_lightning.rounds.algorithm import Algorithm, Loaders
from mlecs_lightning.rounds.bounds import Claims, Moves
from mlecs_lightning.rounds.failures import Fault, FaultLog
from mlecs_lightning.rounds.optimization import origin
from mlecs_lightning.wire.channel import Channel
from mlecs_lightning.wire.ledger import Ledger
from mlecs_lightning.wire.messages import Message, Scalar

__all__ = ["Outcome", "Run"]

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What became of one client in one round.

    Attributes:
        client: The client.
        down: Bytes that it received, by component.
        up: Bytes that it sent and that were accepted, by component.
        data: The accepted message, as bytes.
        message: The accepted message, decoded; only in the process that served the client.
        metrics: The figures of its report, and what a codec lost.
        fault: Why there is no message, if there should be one.
        moved: How far the accepted update has moved, see `Moves`.
    """

    client: str
    down: dict[str, int] = {}  # noqa: RUF012 - never changed
    up: dict[str, int] = {}  # noqa: RUF012
    data: bytes | None = None
    message: Message | None = None
    metrics: dict[str, float] = {}  # noqa: RUF012
    fault: Fault | None = None
    moved: float = 0.0


@dataclass
class Run:
    """The parts of a run, and its progress.

    Attributes:
        evaluator: Judges after a round.
        tester: Judges at the end, with all metrics.
        moves: How far accepted updates have moved.
        claims: What clients have said of themselves.
        served: Outcomes of this process's clients in the round under way, messages left out: the
            store keeps these.
        next_round: The round to go on with.
        clock: Seconds spent by the end of each round, from the begin of the run: apart from the
            history, which is the same bits whenever the run is done.
        before: Seconds spent by the processes that this one goes on from.
        in_place: Whether it goes on in the folder of the checkpoint that it goes on from.
        restored: Whether it goes on from a checkpoint.
        changed: What it goes on with otherwise than the checkpoint, for each party.
    """

    algorithm: Algorithm
    data: FederatedDataModule
    federation: Federation
    evaluator: Evaluator
    tester: Evaluator
    channel: Channel
    folder: RunFolder
    server_loaders: Loaders
    fabric: Fabric
    config: Mapping[str, Any]
    monitor: Monitor
    in_place: bool = False
    ledger: Ledger = field(default_factory=Ledger)
    faults: FaultLog = field(default_factory=FaultLog)
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
    _opened: float = field(default_factory=time.perf_counter, init=False)

    def __post_init__(self) -> None:
        """Let the judges write into the one record of faults."""
        for judge in (self.evaluator, self.tester):
            judge.faults, judge.note = self.faults, self.folder.note

    @property
    def seconds(self) -> float:
        """Seconds spent so far, over all processes that went on from one another."""
        return self.before + time.perf_counter() - self._opened

    @property
    def stream(self) -> Stream:
        """What judges the clients on every phase of the schedule."""
        return Stream(self.data)

    def phase(self, client: str, round: int) -> str:
        """Return what the client's data in a round are called, which do not change under a name."""
        schedule = self.data.schedule
        return "all" if schedule is None else schedule.phase(client, round).name

    def claimed(self, message: Message) -> dict[str, Scalar]:
        """Return what an update says of its client that must not change."""
        return {k: message.scalars[k] for k in self.algorithm.registers if k in message.scalars}

    # Between rounds all ranks know the same, except for the clients' states: each has its own.

    def state_dict(self) -> dict[str, Any]:
        """Return all but the clients' states, as plain values and tensors on the CPU."""
        return {
            "names": list(self.federation.clients),
            "about": self._about(),
            "server": self.federation.server.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "ledger": self.ledger.state_dict(),
            "faults": self.faults.state_dict(),
            "moves": self.moves.state_dict(),
            "claims": self.claims.state_dict(),
            "history": list(self.history),
            "warmup": self.warmup,
            "monitor": self.monitor.name,
            "monitor_mode": self.monitor.mode,
            "config": dict(self.config),
        }

    def _about(self) -> dict[str, Any]:
        """Return what it takes to ask the models later on, without data and configuration."""
        asked = set(self.data.public().instructions)
        return {
            "algorithm": type(self.algorithm).__name__,
            "adds_parts": self.algorithm.adds_parts(),
            "data": type(self.data).__name__,
            "seed": self.federation.parties.seed,
            "precision": str(self.fabric.strategy.precision.precision),
            "models": self.federation.describe(),
            "frozen": self.federation.frozen,
            "inputs": {m: p.to_dict() for m, p in self.data.preparations.items()},
            "instruction": asked.pop() if len(asked) == 1 else None,
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
        """Write the checkpoint of a round, and delete those that are not to be kept.

        Args:
            state: What `state_dict` returned.
            number: The round.
            keep: The checkpoints of how many best rounds stay beside the newest; -1 for all.
            partial: What `partial_state` returned, of a round that has not ended.
        """
        clients, kept = self.client_states(), list[int]()
        if self.federation.ranks.rank == 0:
            folder = self.folder.checkpoints
            seconds = torch.tensor([*self.clock, self.seconds], dtype=torch.float64)
            rest = {"clients": clients, "seconds": seconds}
            if partial is not None:
                rest["partial"] = partial
            save_checkpoint(folder, state | rest, round=number, complete=partial is None)
            kept = prune_checkpoints(folder, self.history, monitor=self.monitor, save_top_k=keep)
        if partial is None and keep >= 0:
            self.federation.store.prune(self.federation.ranks.gather(kept)[0])

    def save_beginning(self, state: dict[str, Any], *, keep: int) -> None:
        """Write where the run begins, if that is not in its folder yet.

        After a warm-up, which can be long, or a copy of a checkpoint from elsewhere: ``last`` then
        means this run from its beginning.

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
        """Return what the clients served so far in this round have done, from all ranks."""
        return self.federation.ranks.merge(
            {
                client: {
                    "down": outcome.down,
                    "up": outcome.up,
                    "metrics": outcome.metrics,
                    "moved": outcome.moved,
                    "fault": None if outcome.fault is None else vars(outcome.fault),
                    "message": _as_tensor(self.federation.store.message(client))
                    if outcome.up
                    else None,
                }
                for client, outcome in self.served.items()
            }
        )

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse to go on from a checkpoint of other settings, where no configuration tells.

        In Python nothing but the parts of a run say what they are.

        Raises:
            CheckpointError: If seed, precision, classes or a party's settings differ.
        """
        if "about" in state and not (self.config and state["config"]):
            check_config(_told(state["about"]), _told(self._about()), same=alike)

    def restore(self, state: Mapping[str, Any], *, path: Path, same_data: bool = True) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `load_checkpoint` returned.
            path: Where the checkpoint is; files of clients that it names are beside it.
            same_data: Whether what clients have said of their data still holds.

        Raises:
            CheckpointError: If it does not fit the federation, or a file that it names is damaged.
        """
        federation = self.federation
        unlike = sorted(set(state["names"]) ^ set(federation.clients))
        if unlike:
            raise CheckpointError(f"ckpt_path: the checkpoint has other clients: {unlike}")
        partial = state.get("partial")
        try:
            server = state["server"]
            federation.server.load_state_dict(server | origin(state, "server", server))
            self.changed["server"] = federation.server.changed
            for client in federation.own:
                if client in state["clients"]:
                    saved = client_state(state["clients"][client], path)
                    saved |= origin(state, client, saved)
                    federation.store.put(client, saved, round=last_round_of(client, state))
                self.changed[client] = federation.edge(client).changed
                if partial is not None and client in partial:
                    self._restore_outcome(client, partial[client])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"ckpt_path: the checkpoint is of other models: {error}"
            ) from error
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.ledger.load_state_dict(state["ledger"])
        self.faults.load_state_dict(state["faults"])
        self.moves.load_state_dict(state.get("moves", ()))
        if same_data:
            self.claims.load_state_dict(state.get("claims", ()))
        self.history, self.warmup = list(state["history"]), state["warmup"]
        self.next_round = int(state["round"]) + (partial is None)
        self.clock, self.before = clock_of(state["seconds"], len(self.history))
        self.restored = True

    def begin(self, checkpoint: Mapping[str, Any] | None) -> None:
        """Make the run folder that of this run; when nothing can refuse it any more.

        Args:
            checkpoint: The one that was restored, if there is one.
        """
        ranks = self.federation.ranks
        ranks.gather(None)  # all have read what they go on from
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
        """Say in one line each what the parties go on with otherwise, those alike together."""
        alike: dict[str, list[str]] = {}
        for party, changes in self.changed.items():
            alike.setdefault("; ".join(changes), []).append(party)
        for said, parties in alike.items():
            if said:
                log.warning("ckpt_path: %s: %s", ", ".join(parties), said)

    def log_round(self, metrics: Mapping[str, float], seconds: float) -> None:
        """Hand the metrics of a round to the loggers, with the seconds of the run at its end."""
        timed = {} if math.isnan(seconds) else {"seconds": seconds}
        self.folder.log({**metrics, **timed}, step=int(metrics["round"]) + 1)

    def _restore_outcome(self, client: str, saved: Mapping[str, Any]) -> None:
        if saved["message"] is not None:
            self.federation.store.put_message(client, saved["message"].numpy().tobytes())
        fault = None if saved["fault"] is None else Fault(**saved["fault"])
        self.served[client] = Outcome(
            client,
            saved["down"],
            saved["up"],
            metrics=saved["metrics"],
            fault=fault,
            moved=saved.get("moved", 0.0),
        )


def _told(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run says of itself, party by party."""
    models = about["models"]
    clients = {
        name: models["architectures"][int(number)] for name, number in models["clients"].items()
    }
    plain = {key: about[key] for key in ("algorithm", "data", "seed", "precision")}
    return plain | {"server": models["server"]["settings"], "clients": clients}


def clock_of(seconds: torch.Tensor | float, rounds: int) -> tuple[list[float], float]:
    """Return the seconds at the end of each round, and those at the time of a checkpoint.

    Args:
        seconds: What the checkpoint has: all of them, or, of before rounds were timed, the last.
        rounds: Rounds that have ended; of one that was not timed it is NaN.
    """
    *timed, now = torch.as_tensor(seconds).flatten().tolist()
    return [math.nan] * (rounds - len(timed)) + timed, now


def _as_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
