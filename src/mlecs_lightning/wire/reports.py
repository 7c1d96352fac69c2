"""The training figures that a client reports with its update: only those that are declared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from mlecs_lightning.wire.messages import REPORT, Message, Schema, TensorField

__all__ = ["declared_figures", "figures_of", "with_figures", "with_report"]


def with_report(schema: Schema, names: Iterable[str]) -> Schema:
    """Return a schema in which each of the named figures is an optional, finite number.

    Each is a float64 tensor with one element, so the size of a message does not depend on digits.
    """
    report = {f"{REPORT}/{name}": TensorField((), torch.float64) for name in names}
    return Schema(schema.tensors, schema.scalars, {**schema.optional, **report})


def declared_figures(figures: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """Return the figures that a client may report: those that are declared and finite.

    A pass without steps has no figures, and the mean of no values is not finite, so every figure is
    optional.
    """
    return {
        name: float(figures[name])
        for name in names
        if name in figures and math.isfinite(figures[name])
    }


def with_figures(message: Message, figures: Mapping[str, float]) -> Message:
    """Return a copy of an update that includes a report."""
    report = {
        f"{REPORT}/{name}": torch.tensor(value, dtype=torch.float64)
        for name, value in figures.items()
    }
    return Message({**message.tensors, **report}, message.scalars)


def figures_of(message: Message) -> dict[str, float]:
    """Return the reported figures of a checked message."""
    return {name: float(value) for name, value in message.component(REPORT).items()}
