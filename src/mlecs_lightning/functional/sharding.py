"""Exact gradients of a global batch that is shared by the processes of `torch.distributed`.

Data-parallel training averages gradients: if rank r of W computes the loss ``L_r`` of its own rows,
every rank steps with ``1/W * sum_r grad L_r``. That is the gradient of the loss L of the global
batch only if L is the mean of the ``L_r``. It is not if ranks average over different numbers of
tokens, or if a loss compares all samples with each other, as a contrastive loss does. These
functions are for such losses. In a single process, all are the identity.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather_rows", "sum_over_ranks", "world_size"]


def world_size() -> int:
    """Return the number of processes; 1 if `torch.distributed` is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(x: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, without gradient; every rank must call this.

    Args:
        x: Any shape, the same on all ranks; any numeric type.

    Returns:
        The sum, bitwise equal on all ranks; ``x`` itself, detached, in a single process.

    Example:
        >>> sum_over_ranks(torch.tensor([3, 4])).tolist()
        [3, 4]
    """
    if world_size() == 1:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def gather_rows(x: Tensor) -> Tensor:
    """Return the rows of all ranks, concatenated in rank order; every rank must call this.

    The gradient is that of the global batch if all ranks compute the same function of the gathered
    rows, and gradients are then averaged over ranks, as DDP does. For ``X = [x_1; ..; x_W]`` and a
    loss ``L(X)`` that every rank computes, the chain rule gives for weights t

        dL/dt = sum_r (dx_r/dt)^T dL/dx_r

    Rank r knows ``dx_r/dt`` only for its own rows, but all of ``dL/dX``. Averaging multiplies the
    sum over ranks by ``1/W``, so each rank must contribute W times its own term: the backward pass
    returns to rank r its rows of ``dL/dX``, times W, without communication. Weights that are
    applied after gathering get the same gradient on all ranks, which averaging does not change.

    Args:
        x: (n, ...) rows of this rank, any type. Ranks may have different numbers of rows, but the
            shape of a row must be the same.

    Returns:
        (N, ...) rows of all ranks, bitwise equal on all of them; ``x`` itself in a single process.
        Their order differs from that in which the global batch was drawn.

    Example:
        >>> gather_rows(torch.tensor([[1.0], [2.0]])).tolist()
        [[1.0], [2.0]]
    """
    return x if world_size() == 1 else _GatherRows.apply(x)  # type: ignore[no-untyped-call]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - torch has no type for it
        rows = x.new_tensor([len(x)], dtype=torch.int64)
        counts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(counts, rows)
        sizes = [int(count) for count in counts]
        # Collectives need equal shapes. Rows are sent as bytes, because not every backend supports
        # every type (gloo has no bool).
        padded = x.new_zeros((max(sizes), *x.shape[1:]))
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather([_bytes(part) for part in parts], _bytes(padded))
        rank = dist.get_rank()
        ctx.own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        return grad[ctx.own] * world_size()


def _bytes(x: Tensor) -> Tensor:
    return x.flatten().view(torch.uint8)
