"""What a client tells of its training beside its update: declared figures, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from mlecs_lightning.wire.messages import REPORT, Message, Schema, TensorField

__all__ = ["declared_figures", "figures_of", "with_figures", "with_report"]


def with_report(schema: Schema, names: Iterable[str]) -> Schema:
    """Return a schema of which each of the named figures may be a part, as a finite number.

    A tensor of one float64 each, so that the length of a message does not depend on their digits.
    """
    report = {f"{REPORT}/{name}": TensorField((), torch.float64) for name in names}
    return Schema(schema.tensors, schema.scalars, {**schema.optional, **report})


def declared_figures(figures: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """Return what may be told of a client's figures: those that are declared and finite.

    Of a pass without steps there are none, and the mean of nothing is no number: no figure has to
    be there.
    """
    return {
        name: float(figures[name])
        for name in names
        if name in figures and math.isfinite(figures[name])
    }


def with_figures(message: Message, figures: Mapping[str, float]) -> Message:
    """Return an update with a report in it."""
    report = {
        f"{REPORT}/{name}": torch.tensor(value, dtype=torch.float64)
        for name, value in figures.items()
    }
    return Message({**message.tensors, **report}, message.scalars)


def figures_of(message: Message) -> dict[str, float]:
    """Return the figures of a message that has been checked."""
    return {name: float(value) for name, value in message.component(REPORT).items()}
