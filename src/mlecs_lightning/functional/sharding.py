"""One global batch, spread over the processes of `torch.distributed`, with exact gradients.

Data-parallel training averages gradients: with W ranks, rank r holding the loss ``L_r`` of its own
rows, every rank steps with ``1/W * sum_r grad L_r``. That is the gradient of the loss L of the
global batch only if L is the mean of the ``L_r``. It is not where ranks hold different numbers of
what is averaged (tokens), nor where a loss compares all samples with each other (contrasts). The
functions here are what such losses need. All are the identity in a single process.
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
    """Return the sum of a tensor over all ranks, without gradient; every rank must call.

    Args:
        x: Any shape, the same on all ranks; of a type that can be added.

    Returns:
        The sum, the same bits on all ranks; ``x`` itself, detached, in a single process.

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
    """Return the rows of all ranks, one rank's after another's; every rank must call.

    The gradient is that of the global batch, if what follows is the same function of the gathered
    rows on all ranks and gradients are then averaged over ranks, as DDP does. For ``X = [x_1; ..;
    x_W]`` and a loss ``L(X)`` that every rank computes in full, the chain rule gives for weights t

        dL/dt = sum_r (dx_r/dt)^T dL/dx_r

    Rank r knows ``dx_r/dt`` of its own rows only, and all of ``dL/dX``. Averaging returns ``1/W``
    of the sum of what the ranks put in, so each puts in W times its own term: the backward pass
    hands rank r its rows of ``dL/dX``, times W. Nothing is communicated in it. Weights behind the
    gathered rows get the same gradient on all ranks, which averaging leaves as it is.

    Args:
        x: (n, ...) rows of this rank, any type. The number of rows may differ between ranks, their
            shape must not.

    Returns:
        (N, ...) the rows of all ranks, the same bits on all of them; ``x`` itself in a single
        process. Their order is not the one in which the global batch was drawn.

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
        # Collectives want equal shapes. They travel as bytes, since not every backend knows every
        # type (gloo has no bool).
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
