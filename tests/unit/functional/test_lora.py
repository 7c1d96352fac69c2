"""Pairs of LoRA factors against dense matrices."""

import pytest
import torch
from torch import Tensor

from mlecs_lightning.functional import LoraFactors, compress, stack_factors

OUT, IN = 24, 40
WEIGHTS = [1.0, 2.0, 5.0]


def delta(factors: LoraFactors) -> Tensor:
    return factors.scaling * factors.up.double() @ factors.down.double()


def sum_of_deltas(factors: list[LoraFactors], weights: list[float]) -> Tensor:
    terms = [w * delta(f) for f, w in zip(factors, weights, strict=True)]
    return torch.stack(terms).sum(dim=0)


def client(seed: int, *, rank: int = 4, scaling: float = 2.0) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, IN, generator=generator)
    return LoraFactors(down, torch.randn(OUT, rank, generator=generator), scaling)


def unequal_clients() -> list[LoraFactors]:
    return [client(0, rank=4), client(1, rank=2, scaling=0.5), client(2, rank=8, scaling=1.0)]


def test_stack_is_exact_for_unequal_ranks_and_scalings() -> None:
    factors = unequal_clients()
    stack = stack_factors(factors, WEIGHTS)
    assert (stack.rank, stack.scaling) == (14, 1.0)
    assert stack.up.dtype == torch.float32
    torch.testing.assert_close(delta(stack), sum_of_deltas(factors, WEIGHTS), atol=1e-5, rtol=1e-5)


def test_a_stack_can_be_built_one_client_at_a_time() -> None:
    factors = unequal_clients()
    total = stack_factors(factors[:1], [1.0])
    for f, weight in zip(factors[1:], WEIGHTS[1:], strict=True):
        total = stack_factors([total, f], [1.0, weight])
    torch.testing.assert_close(delta(total), sum_of_deltas(factors, WEIGHTS), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_compress_is_the_truncated_svd_of_the_dense_update(rank: int) -> None:
    factors = unequal_clients()
    best = compress(stack_factors(factors, WEIGHTS), rank, scaling=2.0)
    left, sizes, right_t = torch.linalg.svd(sum_of_deltas(factors, WEIGHTS))
    dense = left[:, :rank] @ sizes[:rank].diag() @ right_t[:rank]
    assert (best.rank, best.scaling) == (rank, 2.0)
    assert best.down.shape == (rank, IN)
    assert best.up.shape == (OUT, rank)
    assert best.up.dtype == best.down.dtype == torch.float32
    torch.testing.assert_close(delta(best), dense, atol=1e-4, rtol=1e-4)
    # Balanced: either side carries the root of the singular values.
    expected = (sizes[:rank] / 2.0).sqrt().float()
    torch.testing.assert_close(best.up.norm(dim=0), expected)
    torch.testing.assert_close(best.down.norm(dim=1), expected)
    # Signs are settled: the largest entry of each left vector is positive.
    assert (best.up.gather(0, best.up.abs().argmax(dim=0, keepdim=True)) > 0).all()


def test_compress_pads_to_a_larger_rank_with_rows_that_can_still_be_trained() -> None:
    factors = client(0, rank=5)
    padded = compress(factors, 8, scaling=2.0)
    assert padded.rank == 8
    torch.testing.assert_close(delta(padded), delta(factors), atol=1e-5, rtol=1e-5)
    assert padded.up[:, 5:].abs().max() == 0
    down, up = padded.down.clone().requires_grad_(), padded.up.clone().requires_grad_()
    (up @ down).sum().backward()
    assert up.grad is not None
    assert up.grad.abs().amax(dim=0).min() > 0  # zeros on both sides would get none, ever


def test_compressing_an_untrained_adapter_leaves_it_trainable() -> None:
    untrained = client(0)._replace(up=torch.zeros(OUT, 4))
    smaller = compress(untrained, 2, scaling=2.0)
    assert smaller.up.abs().max() == 0
    # The scale of PEFT's own initialisation: a variance of 1 / (3 in).
    assert smaller.down.square().sum(dim=1) == pytest.approx(torch.full((2,), 1 / 3), rel=0.5)
    assert torch.equal(smaller.down, compress(untrained, 2, scaling=2.0).down)


def test_compress_to_the_full_rank_changes_nothing() -> None:
    wide = stack_factors([client(s, rank=20) for s in range(3)], [1.0, -2.0, 0.5])
    assert wide.rank == 60
    narrow = compress(wide, min(OUT, IN), scaling=1.0)
    torch.testing.assert_close(delta(narrow), delta(wide), atol=1e-4, rtol=1e-5)
    double = LoraFactors(wide.down.double(), wide.up.double(), 1.0)
    narrow = compress(double, min(OUT, IN), scaling=1.0)
    torch.testing.assert_close(delta(narrow), delta(double), atol=1e-11, rtol=0)


def test_compress_moves_the_scaling_into_the_factors() -> None:
    factors = client(0, scaling=2.0)
    other = compress(factors, 4, scaling=0.5)
    assert other.scaling == 0.5
    torch.testing.assert_close(delta(other), delta(factors), atol=1e-4, rtol=1e-5)


def test_bf16_factors_come_back_in_bf16_and_are_not_decomposed_in_it() -> None:
    exact = client(0)
    half = LoraFactors(exact.down.bfloat16(), exact.up.bfloat16(), exact.scaling)
    narrow = compress(half, 3, scaling=2.0)
    assert narrow.up.dtype == narrow.down.dtype == torch.bfloat16
    double = LoraFactors(half.down.double(), half.up.double(), half.scaling)
    assert torch.equal(narrow.up, compress(double, 3, scaling=2.0).up.bfloat16())


def test_errors() -> None:
    wider = LoraFactors(torch.ones(4, IN + 1), torch.ones(OUT, 4), 2.0)
    with pytest.raises(ValueError, match=r"factors\[1\] updates a weight of shape \(24, 41\)"):
        stack_factors([client(0), wider], [1, 1])
    transposed = LoraFactors(torch.ones(IN, 4), torch.ones(4, OUT), 2.0)
    with pytest.raises(ValueError, match=r"factors\[0\] must have down \(r, in\) and up"):
        compress(transposed, 2, scaling=1.0)
    with pytest.raises(ValueError, match="at least one client"):
        stack_factors([], [])
    with pytest.raises(ValueError, match="one weight a client: got 1 for 2"):
        stack_factors([client(0), client(1)], [1])
    with pytest.raises(ValueError, match="rank of at least 1 and a scaling above 0, got 0"):
        compress(client(0), 0, scaling=1.0)
    with pytest.raises(ValueError, match=r"above 0, got 2, 0\.0"):
        compress(client(0), 2, scaling=0.0)
