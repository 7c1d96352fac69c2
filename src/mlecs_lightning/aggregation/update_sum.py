"""The exact sum of the low-rank updates of one weight matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from mlecs_lightning.functional import LoraFactors, stack_factors

__all__ = ["UpdateSum"]


class UpdateSum:
    """Weighted sum of the updates scaling B A of one weight matrix, one client at a time.

    Held as stacked factors while these are smaller than the matrix, and as the matrix after that,
    so that neither the memory nor the time per client grows with the number of clients.
    """

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        """Start at zero.

        Args:
            dtype: Of the matrix. In float64 the order of the clients has no effect; float32 takes
                half the time and memory, and is precise enough to measure the error of a mean.
                Factors are always in float64, because differences of their products cancel.
        """
        self._dtype = dtype
        self._stack: LoraFactors | None = None
        self._matrix: Tensor | None = None

    def add(self, factors: LoraFactors, *, weight: float) -> None:
        """Add the update of one client.

        Args:
            factors: down (r, in) and up (out, r); r may differ from client to client.
            weight: Its weight, not normalised.

        Raises:
            ValueError: If the shape of the update differs from that of the earlier ones.
        """
        if self._matrix is None:
            new = LoraFactors(factors.down.double(), factors.up.double(), factors.scaling)
            held = [] if self._stack is None else [self._stack]
            total = stack_factors([*held, new], [*[1.0] * len(held), weight])
            shape = (total.up.shape[0], total.down.shape[1])
            if total.rank * sum(shape) < shape[0] * shape[1]:
                self._stack = total
            else:
                up, down = total.up.to(self._dtype), total.down.to(self._dtype)
                self._stack, self._matrix = None, up @ down
            return
        shape = (factors.up.shape[0], factors.down.shape[1])
        if shape != self._matrix.shape:
            raise ValueError(f"an update of shape {shape} for a sum of {tuple(self._matrix.shape)}")
        up, down = factors.up.to(self._dtype), factors.down.to(self._dtype)
        self._matrix.addmm_(up, down, alpha=weight * factors.scaling)

    def error(self, factors: LoraFactors, *, total: float) -> tuple[float, float]:
        """Return the squared distance of an update from the mean, and the squared norm of the mean.

        Args:
            factors: The update.
            total: The total weight.

        Returns:
            Squared Frobenius norms of the difference and of the mean.

        Raises:
            ValueError: If nothing was added.
        """
        if self._matrix is None:
            mine = LoraFactors(factors.down.double(), factors.up.double(), factors.scaling)
            mean = self.mean(total)
            return _squared_norm(stack_factors([mine, mean], [1.0, -1.0])), _squared_norm(mean)
        up, down = factors.up.to(self._dtype), factors.down.to(self._dtype)
        missed = (factors.scaling * up @ down).sub_(self._matrix, alpha=1 / total)
        return _squared(missed), _squared(self._matrix) / total**2

    @property
    def numel(self) -> int:
        """Number of values in memory."""
        if self._matrix is not None:
            return self._matrix.numel()
        return 0 if self._stack is None else self._stack.down.numel() + self._stack.up.numel()

    def mean(self, total: float) -> LoraFactors:
        """Return the sum divided by a total weight, as factors of scaling 1 and any rank.

        Raises:
            ValueError: If nothing was added.
        """
        if self._stack is not None:
            return self._stack._replace(up=self._stack.up / total)
        if self._matrix is None:
            raise ValueError("the sum of no updates has no shape")
        matrix = self._matrix / total
        rows, columns = matrix.shape
        one = torch.eye(min(rows, columns), dtype=matrix.dtype, device=matrix.device)
        down, up = (matrix, one) if rows <= columns else (one, matrix)
        return LoraFactors(down, up, 1.0)


def _squared(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


def _squared_norm(factors: LoraFactors) -> float:
    """Return ||scaling B A||_F^2 through r x r Gram matrices."""
    up, down = factors.up.T @ factors.up, factors.down @ factors.down.T
    # A difference of near equals may come out a rounding error below zero.
    return max(float((up * down).sum()), 0.0) * factors.scaling**2
