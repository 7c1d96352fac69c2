"""What each process of `test_sharding.py` does with its rows of seven."""

from typing import Any

import torch
from torch import Tensor

from mlecs_lightning.functional import gather_rows, sum_over_ranks, world_size

ROWS = torch.linspace(-1, 2, 21).view(7, 3)
FIRST = 5  # so many rows are rank 0's


def part(rank: int, size: int) -> slice:
    return slice(None) if size == 1 else (slice(0, FIRST), slice(FIRST, 7))[rank]


def contrast(x: Tensor) -> Tensor:
    """Return a loss in which every row meets every other one."""
    return torch.logsumexp(x @ x.T - 3 * torch.eye(len(x)), dim=1).mean()


def gradients(mine: slice) -> dict[str, Tensor]:
    """Return the gradients of weights before and behind the gathered rows."""
    before = torch.tensor([[0.3, -0.2], [0.1, 0.5], [-0.4, 0.2]], requires_grad=True)
    behind = torch.tensor([[0.7, 0.1], [-0.3, 0.9]], requires_grad=True)
    loss = contrast(gather_rows(ROWS[mine] @ before) @ behind)
    loss.backward()
    assert before.grad is not None
    assert behind.grad is not None
    return {"loss": loss.detach(), "before": before.grad, "behind": behind.grad}


def results(rank: int, size: int) -> dict[str, Any]:
    mine = part(rank, size)
    kinds = {
        "float32": ROWS,
        "float64": ROWS.double() / 3,
        "bfloat16": ROWS.bfloat16(),
        "int64": torch.arange(7) + 2**62,
        "bool": ROWS > 0.5,
        "cube": ROWS[..., None].expand(7, 3, 2),
    }
    counted = torch.tensor([1, 10])
    nothing = ROWS[:0] if rank else ROWS
    return {
        "size": world_size(),
        "kinds": {k: gather_rows(v[mine]) for k, v in kinds.items()},
        "whole": kinds,
        "nothing": gather_rows(nothing),
        "gradients": gradients(mine),
        "sum": sum_over_ranks(counted * (rank + 1)),
        "counted": counted,
        "detached": sum_over_ranks(torch.ones(2, requires_grad=True)).requires_grad,
    }
