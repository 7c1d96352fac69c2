"""Limits on client updates: how large a change may be, and which scalars must not change."""

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
"""Root mean square of an update that counts as usual before any update is known, and its minimum.

Our choice. LoRA factors start at about 0.1 (A) and 0 (B) and change by a few learning rates per
round: 0.002 to 0.02 per value in the shipped configurations. A change of 1 per value is far beyond
that. The minimum of 0.01 keeps small first updates, as with a learning-rate warm-up, from setting
the limit.
"""


class LargeUpdateError(ChannelError):
    """An update that differs from what the client was sent by more than the limit."""


class ChangedClaimError(ChannelError):
    """A client has changed a scalar that must stay the same, such as its number of samples."""


class Moves:
    """Tracks the size of accepted updates, from which the limit for later updates is derived.

    The size of an update is the root mean square of its changes, so adapters of different sizes can
    be compared. The median of each round is kept, which a minority of clients cannot shift. An
    update is compared with the median of earlier rounds, never with its own round: clients are
    checked one by one, possibly in several processes, so the result must not depend on the order.
    """

    def __init__(self) -> None:
        """Start without any update."""
        self._medians: list[float] = []
        self._round: list[float] = []

    def usual(self) -> float:
        """Return the usual root mean square of an update so far."""
        if not self._medians:
            return _FIRST
        return max(_LEAST, statistics.median_low(self._medians))

    def add(self, size: float) -> None:
        """Add an accepted update of the current round; one without any change is ignored.

        The round counts by its lower median: of two updates, the smaller one.
        """
        if size > 0:
            self._round.append(size)

    def end_round(self) -> None:
        """End the round: its updates count from now on."""
        if self._round:
            self._medians.append(statistics.median_low(self._round))
        self._round = []

    def state_dict(self) -> list[float]:
        """Return the median of each round as plain numbers: the whole state between rounds."""
        return list(self._medians)

    def load_state_dict(self, state: Sequence[float]) -> None:
        """Restore what `state_dict` returned."""
        self._medians, self._round = list(state), []


@dataclass(frozen=True)
class UpdateLimits:
    """Limits on a client's update.

    Attributes:
        max_norm: Maximum Euclidean norm of an update; ``None`` for no limit. An update is the
            difference from what the client was sent.
        max_ratio: Maximum size of an update, as a multiple of the usual size. The size is the root
            mean square of the changes, the usual one that of earlier rounds (`Moves`). ``None`` for
            no limit. Honest clients stay far below the default.
        on_excess: ``refuse`` a larger update, or ``clip`` it to the limit.
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
    """Limit how much an update may differ from what the client was sent.

    Args:
        message: The update.
        former: For each limited tensor its earlier value, of the same shape.
        limits: The limits.
        usual: See `Moves.usual`.

    Returns:
        The update, clipped if necessary, and the root mean square of its changes.

    Raises:
        LargeUpdateError: If it is too large, and such updates are refused.
    """
    count = sum(t.numel() for t in former.values())
    if not count:
        return message, 0.0
    # In float64, since the square of a large float32 overflows.
    norms = [
        torch.linalg.vector_norm(_difference(message.tensors[k], old), dtype=torch.float64)
        for k, old in former.items()
    ]
    norm = float(torch.linalg.vector_norm(torch.stack(norms)))
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
        k: (old.double() + _difference(sent, old).double() * (limit / norm)).to(sent.dtype)
        for k, old in former.items()
        for sent in [message.tensors[k]]
    }
    return Message({**message.tensors, **clipped}, message.scalars), limit / math.sqrt(count)


def _difference(new: Tensor, old: Tensor) -> Tensor:
    kind = torch.promote_types(new.dtype, torch.float32)
    return new.to(kind) - old.to(kind)


class Claims:
    """Scalars that clients report of themselves and must not change later.

    A client is weighted by its number of samples, which only the client knows. The number is
    registered with its first accepted update, and later updates must repeat it. If the data change
    by a schedule (``data.init_args.schedule``), this applies to each phase separately.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._said: dict[tuple[str, str], dict[str, Scalar]] = {}

    def check(self, client: str, phase: str, claims: Mapping[str, Scalar]) -> None:
        """Compare with what the client reported before.

        Args:
            client: The client.
            phase: Name of the current phase of its data.
            claims: The scalars by name.

        Raises:
            ChangedClaimError: If a scalar has changed; it names both values.
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
        """Register the scalars of an accepted update, unless the client is registered already."""
        if claims:
            self._said.setdefault((client, phase), dict(claims))

    def state_dict(self) -> list[list[Any]]:
        """Return plain lists."""
        return [[*key, dict(claims)] for key, claims in sorted(self._said.items())]

    def load_state_dict(self, state: Sequence[Sequence[Any]]) -> None:
        """Restore what `state_dict` returned."""
        self._said = {(client, phase): dict(claims) for client, phase, claims in state}
