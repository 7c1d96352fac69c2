"""How far a client may move what it was sent, and what it may claim of itself."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mlecs_lightning.errors import FaultList
from mlecs_lightning.wire.encoding import ChannelError
from mlecs_lightning.wire.messages import Message, Scalar

__all__ = ["ChangedClaimError", "Claims", "LargeUpdateError", "Moves", "UpdateLimits", "bounded"]

_FIRST, _LEAST = 1.0, 0.01
"""Root mean square of an update that is taken for usual where nothing is known yet, and the least
that ever is.

Our choice. The factors of a LoRA start at about 0.1 (A) and 0 (B) and move by some learning rates
a round: 0.002 to 0.02 a value in the shipped configurations. A change of 1 a value is far beyond
that; and 0.01 keeps a warm-up of the learning rate from making the first updates the measure.
"""


class LargeUpdateError(ChannelError):
    """An update that is further from what the client was sent than updates are allowed to be."""


class ChangedClaimError(ChannelError):
    """A client that says something else of itself than it has said before."""


class Moves:
    """How far the accepted updates of a run have moved, as the measure of those to come.

    An update counts by the root mean square of its changes, so that adapters of several sizes can
    be compared. Of each round the median is kept: a minority of clients cannot shift it. What an
    update is measured by is the median of the rounds before, never of its own: clients are judged
    one after another, or at once on several processes, and none of them knows of the others.
    """

    def __init__(self) -> None:
        """Start with nothing known."""
        self._medians: list[float] = []
        self._round: list[float] = []

    def usual(self) -> float:
        """Return the root mean square that is usual so far."""
        if not self._medians:
            return _FIRST
        return max(_LEAST, statistics.median_low(self._medians))

    def add(self, size: float) -> None:
        """Count an accepted update of the round under way; one that changes nothing tells nothing.

        The lower median: of two clients the one that moves less is believed.
        """
        if size > 0:
            self._round.append(size)

    def end_round(self) -> None:
        """Let the updates of the round count from now on."""
        if self._round:
            self._medians.append(statistics.median_low(self._round))
        self._round = []

    def state_dict(self) -> list[float]:
        """Return the median of each round, as plain numbers; between rounds that is all."""
        return list(self._medians)

    def load_state_dict(self, state: Sequence[float]) -> None:
        """Restore what `state_dict` returned."""
        self._medians, self._round = list(state), []


@dataclass(frozen=True)
class UpdateLimits:
    """How far a client's update may be from what the client was sent.

    Attributes:
        max_norm: Maximum Euclidean distance from what the client was sent; ``None`` for no limit.
        max_ratio: Maximum root mean square of the changes, as a multiple of what was usual in
            earlier rounds (`Moves`); ``None`` for no limit. Honest clients stay far below the
            default.
        on_excess: Whether a larger update is refused, or clipped to the limit.
    """

    max_norm: float | None = None
    max_ratio: float | None = 100.0
    on_excess: Literal["refuse", "clip"] = "refuse"

    def __post_init__(self) -> None:
        """Check ranges."""
        faults = FaultList()
        for name in ("max_norm", "max_ratio"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                faults.append(f"trainer.update_limits.{name} must be above 0, got {limit}")
        faults.raise_any()


def bounded(
    message: Message, former: Mapping[str, Tensor], limits: UpdateLimits, *, usual: float
) -> tuple[Message, float]:
    """Limit how far an update may be from what the client was sent.

    Args:
        message: The update.
        former: For each tensor that is limited what it started from, in the tensor's shape.
        limits: The limits.
        usual: See `Moves.usual`.

    Returns:
        The update, clipped if it has to be, and the root mean square of its changes.

    Raises:
        LargeUpdateError: If it is too large, and such updates are refused.
    """
    # In float64: the square of a large float32 is none.
    change = {k: message.tensors[k].double() - old.double() for k, old in former.items()}
    count = sum(t.numel() for t in change.values())
    if not count:
        return message, 0.0
    norm = float(torch.nn.utils.get_total_norm(change.values()))
    wide = math.inf if limits.max_ratio is None else limits.max_ratio * usual * math.sqrt(count)
    limit = min(wide, math.inf if limits.max_norm is None else limits.max_norm)
    if norm <= limit:
        return message, norm / math.sqrt(count)
    if limits.on_excess == "refuse":
        key = "max_norm" if limit < wide else "max_ratio"
        raise LargeUpdateError(
            f"norm of the update is {norm:.4g}, the limit is {limit:.4g} "
            f"(trainer.update_limits.{key}; usual is {usual * math.sqrt(count):.4g})"
        )
    clipped = {
        k: (former[k].double() + t * (limit / norm)).to(message.tensors[k].dtype)
        for k, t in change.items()
    }
    return Message({**message.tensors, **clipped}, message.scalars), limit / math.sqrt(count)


class Claims:
    """What clients have said of themselves: the first word counts.

    A client counts by its number of samples, which nobody but itself can know. So it is registered
    with the first update that is accepted, and what it says later has to be the same. Where the
    data change by a schedule (``data.init_args.schedule``) that holds for each of its phases.
    """

    def __init__(self) -> None:
        """Start with nobody known."""
        self._said: dict[tuple[str, str], dict[str, Scalar]] = {}

    def check(self, client: str, phase: str, claims: Mapping[str, Scalar]) -> None:
        """Compare with what the client has said before.

        Args:
            client: The client.
            phase: Name of the phase of its data.
            claims: What it says now, by the name of the scalar.

        Raises:
            ChangedClaimError: If it says something else; it names both.
        """
        before = self._said.get((client, phase), {})
        changed = [
            f"{name!r} is {value!r}, registered is {before[name]!r}"
            for name, value in claims.items()
            if name in before and before[name] != value
        ]
        if changed:
            raise ChangedClaimError(
                f"{'; '.join(changed)}; data that change need a data.init_args.schedule that says "
                "so, or a run of their own"
            )

    def register(self, client: str, phase: str, claims: Mapping[str, Scalar]) -> None:
        """Remember what a client has said in an accepted update, unless it is known already."""
        if claims:
            self._said.setdefault((client, phase), dict(claims))

    def state_dict(self) -> list[list[Any]]:
        """Return plain lists."""
        return [[*key, dict(claims)] for key, claims in sorted(self._said.items())]

    def load_state_dict(self, state: Sequence[Sequence[Any]]) -> None:
        """Restore what `state_dict` returned."""
        self._said = {(client, phase): dict(claims) for client, phase, claims in state}
