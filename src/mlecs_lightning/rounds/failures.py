"""Client failures: simulated ones, and the record of all that happen in a run."""

from __future__ import annotations

import random
import re
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

from mlecs_lightning.errors import FaultList
from mlecs_lightning.rounds.context import derive_seed

__all__ = [
    "EvaluationError",
    "Failure",
    "FailureKind",
    "FailureLog",
    "FailureTrace",
    "Fate",
    "Note",
    "SimulatedFailure",
    "raised",
]

FailureKind = Literal["dropout", "straggler", "crash", "error", "refused"]


_STAGE = re.compile(r"[A-Za-z0-9_ ./-]{0,64}")
_CLASS = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,63})?")


@dataclass(frozen=True)
class Failure:
    """The failure of one client in one round, in training or evaluation.

    This is everything that others learn of it. The text of an exception may quote the client's
    data, so it stays with the client, in the file `RunFolder.client_log`. Only the class and the
    stage are recorded here, both of bounded length.

    Attributes:
        round: The round, from 0.
        client: The client.
        kind: ``dropout`` (absent), ``straggler`` (missed the deadline), ``crash`` (stopped during a
            pass), ``error`` (its code raised, in training or evaluation), ``refused`` (its message
            was not accepted).
        stage: The training pass, or ``uplink`` for its message; empty before the first pass.
        error: Class name of the exception; empty if there was none.
    """

    round: int
    client: str
    kind: FailureKind
    stage: str = ""
    error: str = ""

    def __post_init__(self) -> None:
        """Check the format of every field.

        Raises:
            ValueError: If one is invalid.
        """
        if self.kind not in get_args(FailureKind):
            raise ValueError(
                f"kind must be one of {list(get_args(FailureKind))}, got {self.kind!r}"
            )
        for name, form in (("stage", _STAGE), ("error", _CLASS)):
            if not form.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} must be like {form.pattern}")

    @classmethod
    def of(
        cls, error: Exception, *, kind: FailureKind, stage: str, round: int, client: str
    ) -> Failure:
        """Return the failure for an exception, without names that are not of the allowed format."""
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
        """The failure in words."""
        where = f", stage {self.stage!r}" if self.stage else ""
        return f"client {self.client!r}{where}: {self.error or self.kind}"


Note = Callable[[str, str], None]
"""Writes text to a client's own log file: ``note(client, text)``."""


def raised(
    error: Exception, *, kind: FailureKind, stage: str, round: int, client: str, note: Note
) -> Failure:
    """Return the failure for an exception, and write its full text to the client's own file."""
    text = "".join(traceback.format_exception(error))
    note(client, f"round {round}, {kind}, stage {stage!r}\n{text}\n")
    return Failure.of(error, kind=kind, stage=stage, round=round, client=client)


class EvaluationError(RuntimeError):
    """The evaluation of the server, or of every client, failed. No training is lost."""


class SimulatedFailure(Exception):
    """A client fails in a round because a `FailureTrace` says so."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        """Set kind and reason."""
        super().__init__(reason)
        self.kind: FailureKind = kind


class Fate(NamedTuple):
    """The simulated failures of one client in one round.

    Attributes:
        drops: Whether it is absent.
        budget: Number of optimiser steps it can take before the deadline; ``None`` for no limit.
        crash: Number of optimiser steps after which it crashes; ``None`` for never.
    """

    drops: bool = False
    budget: int | None = None
    crash: int | None = None

    def watch(self) -> Callable[[], None]:
        """Return a function to call before each optimiser step; it may raise `SimulatedFailure`."""
        steps = 0

        def before_step() -> None:
            nonlocal steps
            if self.crash is not None and steps >= self.crash:
                raise SimulatedFailure("crash", f"crashed after {steps} steps")
            if self.budget is not None and steps >= self.budget:
                raise SimulatedFailure("straggler", f"missed the deadline after {steps} steps")
            steps += 1

        return before_step


@dataclass(frozen=True)
class FailureTrace:
    """Simulated client failures, drawn from a seed as a function of round and client.

    The model is our choice. Work is counted in optimiser steps, not in seconds, so a trace does not
    depend on the machine that simulates it.

    Attributes:
        dropout_rate: Probability that a client is absent from a round.
        straggler_rate: Probability that a client is slow in a round.
        slowdown: Factor by which a step of a slow client takes longer.
        deadline: Number of steps that a client of normal speed can take in a round; ``None`` waits
            for all clients.
        crash_rate: Probability that a client crashes in a round.
        crash_within: The crash comes before one of this many first steps, each equally likely.
        seed: Seed of the draws, independent of the training seed.
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
        faults = FaultList()
        for name in ("dropout_rate", "straggler_rate", "crash_rate"):
            rate = getattr(self, name)
            if not 0 <= rate <= 1:
                faults.append(f"trainer.faults.{name} must lie in [0, 1], got {rate}")
        for name in ("slowdown", "deadline", "crash_within"):
            faults.check_range(f"trainer.faults.{name}", getattr(self, name), at_least=1)
        faults.raise_any()

    def fate(self, round: int, client: str) -> Fate:
        """Return the simulated failures of a client in a round."""
        rng = random.Random(derive_seed(self.seed, round, client, "fate"))
        # Always draw all four, so that one rate does not change the draws of another.
        drops, slow, crashes, step = (rng.random() for _ in range(4))
        budget = self.deadline
        if budget is not None and slow < self.straggler_rate:
            budget = int(budget / self.slowdown)
        return Fate(
            drops < self.dropout_rate,
            budget,
            int(step * self.crash_within) if crashes < self.crash_rate else None,
        )


class FailureLog:
    """All failures of a run."""

    def __init__(self) -> None:
        """Start empty."""
        self.failures: list[Failure] = []

    def counts(self) -> dict[str, int]:
        """Return the number of failures of each kind."""
        counted = Counter(failure.kind for failure in self.failures)
        return {kind: counted[kind] for kind in get_args(FailureKind)}

    def state_dict(self) -> list[dict[str, Any]]:
        """Return plain values."""
        return [asdict(failure) for failure in self.failures]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Restore what `state_dict` returned.

        Unknown entries are dropped: earlier versions also stored full error messages.
        """
        known = {each.name for each in fields(Failure)}
        self.failures = [Failure(**{k: v for k, v in f.items() if k in known}) for f in state]
