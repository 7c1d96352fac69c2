"""Rows times the weights of their clients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["product"]


def product(
    rows: Tensor, weight: Tensor, start: Tensor | None = None, *, factor: float = 1.0
) -> Tensor:
    """Return ``start + factor * rows @ weight^T`` for each client.

    `torch.bmm` gives the gradient of a transposed matrix transposed, and autograd then copies it
    element by element into the layout of the weight. Here it is made in that layout.

    Args:
        rows: (C, N, in).
        weight: (C, out, in).
        start: (C, N, out), or (C, out) for all rows of a client; ``None`` for zero.
        factor: Of the product.

    Returns:
        (C, N, out), in the type of the autocast if there is one.
    """
    if torch.is_autocast_enabled(rows.device.type):
        kind = torch.get_autocast_dtype(rows.device.type)
        rows, weight = rows.to(kind), weight.to(kind)
        start = None if start is None else start.to(kind)
    if start is not None and start.dim() < rows.dim():
        start = start.unsqueeze(1)
    made: Tensor = _Product.apply(rows, weight, start, factor)  # type: ignore[no-untyped-call]
    return made


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch has no type for it
        rows: Tensor,
        weight: Tensor,
        start: Tensor | None,
        factor: float,
    ) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.factor, ctx.start = factor, None if start is None else start.shape
        return _add(start, rows, weight.mT, factor)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401 - torch has no type for it
        gradient: Tensor,
    ) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_start, _ = ctx.needs_input_grad
        return (
            _add(None, gradient, weight, ctx.factor) if of_rows else None,
            _add(None, gradient.mT, rows, ctx.factor) if of_weight else None,
            gradient.sum_to_size(ctx.start) if of_start else None,
            None,
        )


def _add(start: Tensor | None, one: Tensor, other: Tensor, factor: float) -> Tensor:
    if start is not None:
        return torch.baddbmm(start, one, other, alpha=factor)
    if factor == 1.0:
        return torch.bmm(one, other)
    return torch.baddbmm(one.new_empty(()), one, other, beta=0, alpha=factor)
