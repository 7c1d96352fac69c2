"""Low-rank updates as pairs of LoRA factors, without forming the full weight matrix.

The update of one weight matrix is ``delta = scaling * up @ down``. Decompositions are computed in
float64, and results are returned in the dtype of the factors.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LoraFactors(NamedTuple):
    """Low-rank update of one weight matrix: ``delta = scaling * up @ down``, shape (out, in).

    Attributes:
        down: Shape (r, in); ``lora_A.weight`` in PEFT.
        up: Shape (out, r); ``lora_B.weight`` in PEFT.
        scaling: ``alpha / r``.
    """

    down: Tensor
    up: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        """Number of rows of ``down``: a bound on the rank of the update."""
        return self.down.shape[0]


def stack_factors(factors: Sequence[LoraFactors], weights: Sequence[float]) -> LoraFactors:
    """Exact weighted sum ``sum_j w_j delta_j``; the weights are not normalised.

    Source: FLoRA (arXiv 2409.05976), which stacks the factors of all clients. Sums can be built one
    client at a time: ``stack_factors([total, new], [1.0, w])``.

    Args:
        factors: At least one pair; ranks and scalings may differ.
        weights: One factor a pair, of any sign.

    Returns:
        Factors of rank ``sum r_j`` and scaling 1.

    Raises:
        ValueError: If the numbers of pairs and weights differ, or shapes disagree.

    Example:
        >>> one = LoraFactors(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0]]), 0.5)
        >>> two = LoraFactors(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0]]), 1.0)
        >>> total = stack_factors([one, two], [1.0, 3.0])
        >>> total.up @ total.down
        tensor([[1., 3.]])
    """
    _check_factors(factors)
    if len(weights) != len(factors):
        raise ValueError(f"need one weight a client: got {len(weights)} for {len(factors)}")
    down = torch.cat([f.down for f in factors], dim=0)
    up = torch.cat([f.up * (w * f.scaling) for f, w in zip(factors, weights, strict=True)], dim=1)
    return LoraFactors(down, up, 1.0)


def compress(factors: LoraFactors, rank: int, *, scaling: float) -> LoraFactors:
    """Best approximation of an update by one of another rank: a truncated SVD.

    The best one in the Frobenius norm (Eckart and Young). QR of both factors leaves a core of at
    most r x r to decompose. Each side gets ``sqrt(S / scaling)``, and the entry of largest size
    in every column of ``up`` is positive. Exact if ``rank`` is at least the rank of the update.

    Rows beyond the rank of the update have an ``up`` of zero, so that they add nothing, and a
    ``down`` that is random, the same in every call, with the variance of PEFT's initialisation. Our
    choice: with zeros on both sides neither would ever get a gradient, and those ranks would be
    lost for good (all of them, for an adapter that has not been trained yet).

    Args:
        factors: The update.
        rank: Rank of the result, at least 1; may exceed that of ``factors``.
        scaling: Scaling of the result, above 0.

    Returns:
        Factors of exactly this rank and scaling.

    Raises:
        ValueError: If the shapes disagree, or rank or scaling is too small.

    Example:
        >>> exact = LoraFactors(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.eye(2), 1.0)
        >>> best = compress(exact, 1, scaling=2.0)
        >>> torch.round(best.scaling * best.up @ best.down, decimals=4)
        tensor([[3., 0.],
                [0., 0.]])
    """
    _check_factors([factors])
    if rank < 1 or not scaling > 0:
        raise ValueError(f"need a rank of at least 1 and a scaling above 0, got {rank}, {scaling}")
    left, sizes, right = _thin_svd(_double(factors))
    # Below this a singular value is rounding: the bound of numpy.linalg.matrix_rank.
    threshold = sizes.max() * factors.rank * torch.finfo(sizes.dtype).eps
    kept = min(rank, int((sizes > threshold).sum()))
    peak = left.abs().argmax(dim=0, keepdim=True)
    balance = left.gather(0, peak).sign() * (sizes / scaling).sqrt()
    up = left.new_zeros(left.shape[0], rank)
    up[:, :kept] = (left * balance)[:, :kept]
    down = _untrained_rows(rank, right.shape[0]).to(right)
    down[:kept] = (right * balance).T[:kept]
    return _cast(LoraFactors(down, up, scaling), [factors.down.dtype, factors.up.dtype])


def _check_factors(factors: Sequence[LoraFactors]) -> None:
    """Every pair must be matrices that multiply, to a weight of one shape for all."""
    if not factors:
        raise ValueError("need the factors of at least one client, got none")
    first = factors[0]
    for index, f in enumerate(factors):
        down, up = tuple(f.down.shape), tuple(f.up.shape)
        if len(down) != 2 or len(up) != 2 or up[1] != down[0] or f.rank < 1:
            raise ValueError(
                f"factors[{index}] must have down (r, in) and up (out, r), got {down} and {up}"
            )
        if (up[0], down[1]) != (first.up.shape[0], first.down.shape[1]):
            raise ValueError(
                f"factors[{index}] updates a weight of shape {(up[0], down[1])}, but factors[0] "
                f"one of shape {(first.up.shape[0], first.down.shape[1])}"
            )


def _thin_svd(factors: LoraFactors) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of an update: left (out, s), singular values (s,), right (in, s), s at most the rank."""
    q_up, r_up = torch.linalg.qr(factors.up)
    q_down, r_down = torch.linalg.qr(factors.down.T)
    core = factors.scaling * r_up @ r_down.T
    left, sizes, right_t = torch.linalg.svd(core, full_matrices=False)
    return q_up @ left, sizes, q_down @ right_t.T


def _untrained_rows(rank: int, width: int) -> Tensor:
    """Random rows (rank, in), the same in every call, on the CPU in float64.

    PEFT draws ``lora_A`` by kaiming_uniform_(a=sqrt(5)): a variance of 1 / (3 in).
    """
    generator = torch.Generator().manual_seed(0)
    rows: Tensor = torch.randn(rank, width, generator=generator, dtype=torch.float64)
    return rows / math.sqrt(3 * width)


def _double(factors: LoraFactors) -> LoraFactors:
    return LoraFactors(factors.down.double(), factors.up.double(), factors.scaling)


def _cast(factors: LoraFactors, dtypes: Sequence[torch.dtype]) -> LoraFactors:
    """Factors in the widest of the dtypes given."""
    dtype = dtypes[0]
    for other in dtypes[1:]:
        dtype = torch.promote_types(dtype, other)
    return LoraFactors(factors.down.to(dtype), factors.up.to(dtype), factors.scaling)
