"""Everything that belongs to one call of a trainer, and how it is saved and restored."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from lightning.pytorch.utilities import rank_zero_info

from mlecs_lightning.callbacks.monitor import Monitor
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.federated.algorithm import Algorithm, Loaders
from mlecs_lightning.federated.channel import Channel, Ledger
from mlecs_lightning.federated.checkpoint import CheckpointError, save_checkpoint
from mlecs_lightning.federated.evaluation import Evaluator
from mlecs_lightning.federated.faults import Fault, FaultLog
from mlecs_lightning.federated.federation import Federation
from mlecs_lightning.federated.messages import Message
from mlecs_lightning.federated.output import RunFolder, communication
from mlecs_lightning.federated.stream import Stream
from mlecs_lightning.federated.timeline import last_round_of, prune_checkpoints, set_aside

__all__ = ["Outcome", "Run", "client_state"]


class Outcome(NamedTuple):
    """What became of one client in one round.

    Attributes:
        client: The client.
        down: Bytes that it received, by component.
        up: Bytes that it sent and that were accepted, by component.
        data: The accepted message, as bytes.
        message: The accepted message, decoded; only in the process that served the client.
        metrics: Its training losses.
        fault: Why there is no message, if there should be one.
    """

    client: str
    down: dict[str, int] = {}  # noqa: RUF012 - never changed
    up: dict[str, int] = {}  # noqa: RUF012
    data: bytes | None = None
    message: Message | None = None
    metrics: dict[str, float] = {}  # noqa: RUF012
    fault: Fault | None = None


@dataclass
class Run:
    """The parts of a run, and its progress.

    Attributes:
        evaluator: Judges after a round.
        tester: Judges at the end, with all metrics.
        served: Outcomes of this process's clients in the round under way, messages left out: the
            store keeps these.
        next_round: The round to go on with.
        before: Seconds spent by the processes that this one goes on from.
        in_place: Whether it goes on in the folder of the checkpoint that it goes on from.
        restored: Whether it goes on from a checkpoint.
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
    history: list[dict[str, float]] = field(default_factory=list)
    warmup: dict[str, float] = field(default_factory=dict)
    served: dict[str, Outcome] = field(default_factory=dict)
    next_round: int = 0
    before: float = 0.0
    restored: bool = False
    _opened: float = field(default_factory=time.perf_counter, init=False)

    @property
    def seconds(self) -> float:
        """Seconds spent so far, over all processes that went on from one another."""
        return self.before + time.perf_counter() - self._opened

    @property
    def stream(self) -> Stream:
        """What judges the clients on every phase of the schedule."""
        return Stream(self.data)

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
            rest = {"clients": clients, "seconds": self.seconds}
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
                    "fault": None if outcome.fault is None else vars(outcome.fault),
                    "message": _as_tensor(self.federation.store.message(client))
                    if outcome.up
                    else None,
                }
                for client, outcome in self.served.items()
            }
        )

    def restore(self, state: Mapping[str, Any], *, folder: Path) -> None:
        """Go on from a checkpoint.

        Args:
            state: What `load_checkpoint` returned.
            folder: Where the checkpoint is; files of clients that it names are beside it.

        Raises:
            CheckpointError: If it does not fit the federation.
        """
        federation = self.federation
        unlike = sorted(set(state["names"]) ^ set(federation.clients))
        if unlike:
            raise CheckpointError(f"ckpt_path: the checkpoint has other clients: {unlike}")
        partial = state.get("partial")
        try:
            federation.server.load_state_dict(state["server"])
            for client in federation.own:
                if client in state["clients"]:
                    saved = client_state(state["clients"][client], folder)
                    federation.store.put(client, saved, round=last_round_of(client, state))
                federation.edge(client)
                if partial is not None and client in partial:
                    self._restore_outcome(client, partial[client])
        except (KeyError, RuntimeError, ValueError, OSError) as error:
            raise CheckpointError(
                f"ckpt_path: the checkpoint is of other models: {error}"
            ) from error
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.ledger.load_state_dict(state["ledger"])
        self.faults.load_state_dict(state["faults"])
        self.history, self.warmup = list(state["history"]), state["warmup"]
        self.next_round = int(state["round"]) + (partial is None)
        self.before, self.restored = state["seconds"], True

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
        for row in self.history:
            self.folder.log(row, step=int(row["round"]) + 1)
        if self.config:
            self.folder.write_config(self.config)

    def _restore_outcome(self, client: str, saved: Mapping[str, Any]) -> None:
        if saved["message"] is not None:
            self.federation.store.put_message(client, saved["message"].numpy().tobytes())
        fault = None if saved["fault"] is None else Fault(**saved["fault"])
        self.served[client] = Outcome(
            client, saved["down"], saved["up"], metrics=saved["metrics"], fault=fault
        )

    def summary(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Return what summary.json holds, with the scores of an evaluation."""
        groups = {host: list(c) for host, c in self.federation.parties.groups.items()}
        streamed = self._streamed()
        return {
            "algorithm": type(self.algorithm).__name__,
            "seed": self.federation.parties.seed,
            "rounds": len(self.history),
            **results,
            **({"groups": groups} if len(groups) > 1 else {}),
            **({} if streamed is None else {"stream": streamed}),
            "aggregation_error": [
                r["aggregate/error"] for r in self.history if "aggregate/error" in r
            ],
            "faults": {**self.faults.counts(), "events": self.faults.state_dict()},
            "communication": communication(self.ledger, self.federation) | self._coded(),
            "seconds": self.seconds,
        }

    def _streamed(self) -> Any:  # noqa: ANN401 - a nested dict
        """Judge the clients after the last round, if that has not been done, and sum up."""
        rows = list(self.history)
        if rows and not any(k.startswith("stream/") for k in rows[-1]):
            last = int(rows[-1]["round"])
            rows[-1] = rows[-1] | self.stream.row(self.evaluator, self.federation, last)
        return self.stream.summary(rows, self.federation.clients)

    def _coded(self) -> dict[str, Any]:
        """Return what the codec is, and what it lost in each round."""
        if self.channel.codec is None:
            return {}
        lost = {
            way: [row[key] for row in self.history if (key := f"channel/{way}_error") in row]
            for way in ("uplink", "downlink")
        }
        return {"codec": self.channel.codec.describe(), "reconstruction_error": lost}


def client_state(saved: dict[str, Any] | str, folder: Path) -> dict[str, Any]:
    """Return a state that the checkpoint holds, or that of the file it names."""
    if isinstance(saved, dict):
        return saved
    state: dict[str, Any] = torch.load(
        folder / "clients" / saved, weights_only=True, map_location="cpu"
    )
    return state


def _as_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
