"""What can go wrong with a client: drawn misfortunes for simulations, and the record of all."""

from __future__ import annotations

import random
import re
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

from mlecs_lightning.rounds.context import derive_seed

__all__ = [
    "ClientFault",
    "EvaluationError",
    "Fate",
    "Fault",
    "FaultKind",
    "FaultLog",
    "FaultTrace",
    "Note",
    "raised",
]

FaultKind = Literal["dropout", "straggler", "crash", "error", "refused"]


_STAGE = re.compile(r"[A-Za-z0-9_ ./-]{0,64}")
_CLASS = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,63})?")


@dataclass(frozen=True)
class Fault:
    """One client that gave nothing in one round, or could not be judged after it.

    This is all that is told of it to anybody else. What an exception says may quote the client's
    data. So its text stays with the client, in the file `RunFolder.client_log`; here are its class
    and where it was raised, of bounded length.

    Attributes:
        round: The round, from 0.
        client: The client.
        kind: ``dropout`` (was not there), ``straggler`` (missed the deadline), ``crash`` (stopped
            in the middle of a pass), ``error`` (its code raised, in training or evaluation),
            ``refused`` (its message was not accepted).
        stage: The pass that it was in, ``uplink`` on the way back; empty before the first one.
        error: Name of the exception's class; empty if there was none.
    """

    round: int
    client: str
    kind: FaultKind
    stage: str = ""
    error: str = ""

    def __post_init__(self) -> None:
        """Check that every part has its form.

        Raises:
            ValueError: If one has not.
        """
        if self.kind not in get_args(FaultKind):
            raise ValueError(f"kind must be one of {list(get_args(FaultKind))}, got {self.kind!r}")
        for name, form in (("stage", _STAGE), ("error", _CLASS)):
            if not form.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} must be like {form.pattern}")

    @classmethod
    def of(cls, error: Exception, *, kind: FaultKind, stage: str, round: int, client: str) -> Fault:
        """Return what is told of an exception; a name that is none of the form is left out."""
        name = type(error).__name__
        return cls(
            round,
            client,
            kind,
            stage if _STAGE.fullmatch(stage) else "",
            name if _CLASS.fullmatch(name) else "Exception",
        )

    @property
    def reason(self) -> str:
        """What happened, in words."""
        where = f", stage {self.stage!r}" if self.stage else ""
        return f"client {self.client!r}{where}: {self.error or self.kind}"


Note = Callable[[str, str], None]
"""Writes a text into the file of a client's own, by name of the client."""


def raised(
    error: Exception, *, kind: FaultKind, stage: str, round: int, client: str, note: Note
) -> Fault:
    """Return what is told of an exception; all that it says goes to the client's own file."""
    text = "".join(traceback.format_exception(error))
    note(client, f"round {round}, {kind}, stage {stage!r}\n{text}\n")
    return Fault.of(error, kind=kind, stage=stage, round=round, client=client)


class EvaluationError(RuntimeError):
    """The server, or every client, could not be judged. What has been trained is not lost."""


class ClientFault(Exception):
    """A client cannot end its round, as drawn by a `FaultTrace`."""

    def __init__(self, kind: FaultKind, reason: str) -> None:
        """Say which kind, and what happened."""
        super().__init__(reason)
        self.kind: FaultKind = kind


class Fate(NamedTuple):
    """What is to happen to one client in one round.

    Attributes:
        drops: It does not take part at all.
        budget: Optimiser steps that it gets done before the deadline; ``None`` for any number.
        crash: The optimiser step, from 0, in place of which it crashes; ``None`` for never.
    """

    drops: bool = False
    budget: int | None = None
    crash: int | None = None

    def watch(self) -> Callable[[], None]:
        """Return a function to call before every optimiser step; it raises `ClientFault`."""
        steps = 0

        def before_step() -> None:
            nonlocal steps
            if self.crash is not None and steps >= self.crash:
                raise ClientFault("crash", f"crashed after {steps} steps")
            if self.budget is not None and steps >= self.budget:
                raise ClientFault("straggler", f"missed the deadline after {steps} steps")
            steps += 1

        return before_step


@dataclass(frozen=True)
class FaultTrace:
    """Misfortunes drawn from a seed: a function of round and client, the same in every run.

    Our choice of model. Work is counted in the client's own optimiser steps, never in seconds, so
    that a trace does not depend on the machine that simulates it.

    Attributes:
        dropout_rate: Probability that a client is absent from a round.
        straggler_rate: Probability that a client is slow in a round.
        slowdown: How many times longer a step of a slow client takes.
        deadline: Steps that a client of normal speed gets done in a round's time; ``None`` waits
            for all.
        crash_rate: Probability that a client crashes in a round.
        crash_within: The crash comes before one of that many first steps, all equally likely.
        seed: Seed of the draws, apart from that of the training.
    """

    dropout_rate: float = 0.0
    straggler_rate: float = 0.0
    slowdown: float = 4.0
    deadline: int | None = None
    crash_rate: float = 0.0
    crash_within: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("dropout_rate", "straggler_rate", "crash_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"trainer.faults.{name} must lie in [0, 1], got {getattr(self, name)}"
                )
        if self.slowdown < 1:
            raise ValueError(f"trainer.faults.slowdown must be at least 1, got {self.slowdown}")
        for name in ("deadline", "crash_within"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"trainer.faults.{name} must be at least 1, got {value}")

    def fate(self, round: int, client: str) -> Fate:
        """Return what happens to a client in a round."""
        rng = random.Random(derive_seed(self.seed, round, client, "fate"))
        # All are drawn always, so that one rate does not shift the draws of another.
        drops, slow, crashes, step = (rng.random() for _ in range(4))
        budget = self.deadline
        if budget is not None and slow < self.straggler_rate:
            budget = int(budget / self.slowdown)
        return Fate(
            drops < self.dropout_rate,
            budget,
            int(step * self.crash_within) if crashes < self.crash_rate else None,
        )


class FaultLog:
    """Every fault of a run."""

    def __init__(self) -> None:
        """Start empty."""
        self.faults: list[Fault] = []

    def counts(self) -> dict[str, int]:
        """Return how many there were of each kind."""
        counted = Counter(fault.kind for fault in self.faults)
        return {kind: counted[kind] for kind in get_args(FaultKind)}

    def state_dict(self) -> list[dict[str, Any]]:
        """Return plain values."""
        return [asdict(fault) for fault in self.faults]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Restore what `state_dict` returned; entries that a fault has not are left behind.

        Those of older versions hold whole texts.
        """
        known = {each.name for each in fields(Fault)}
        self.faults = [Fault(**{k: v for k, v in f.items() if k in known}) for f in state]
