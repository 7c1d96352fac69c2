"""LoRA aggregation against dense matrices and answers known beforehand."""

import math

import pytest
import torch
from torch import Tensor

from mlecs_lightning.functional import (
    LoraFactors,
    aggregate_freeze_a,
    aggregate_separate,
    aggregate_stack,
    aggregate_svd,
    aggregation_error,
    compress,
    stack_factors,
)

OUT, IN = 24, 40
WEIGHTS = [1.0, 2.0, 5.0]


def delta(factors: LoraFactors) -> Tensor:
    return factors.scaling * factors.up.double() @ factors.down.double()


def mean_delta(factors: list[LoraFactors], weights: list[float]) -> Tensor:
    terms = [w * delta(f) for f, w in zip(factors, weights, strict=True)]
    return torch.stack(terms).sum(dim=0) / sum(weights)


def client(seed: int, *, rank: int = 4, scaling: float = 2.0) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, IN, generator=generator)
    return LoraFactors(down, torch.randn(OUT, rank, generator=generator), scaling)


def unequal_clients() -> list[LoraFactors]:
    return [client(0, rank=4), client(1, rank=2, scaling=0.5), client(2, rank=8, scaling=1.0)]


def test_separate_averages_each_factor() -> None:
    factors = [
        LoraFactors(torch.tensor([[0.0, 4.0]]), torch.tensor([[2.0]]), 3.0),
        LoraFactors(torch.tensor([[4.0, 0.0]]), torch.tensor([[6.0]]), 3.0),
    ]
    mean = aggregate_separate(factors, [1, 3])
    assert torch.equal(mean.down, torch.tensor([[3.0, 1.0]]))
    assert torch.equal(mean.up, torch.tensor([[5.0]]))
    assert mean.scaling == 3.0


def test_stack_is_exact_for_unequal_ranks_and_scalings() -> None:
    factors = unequal_clients()
    stack = aggregate_stack(factors, WEIGHTS)
    assert (stack.rank, stack.scaling) == (14, 1.0)
    assert stack.up.dtype == torch.float32
    torch.testing.assert_close(delta(stack), mean_delta(factors, WEIGHTS), atol=1e-5, rtol=1e-5)
    assert aggregation_error(stack, factors, WEIGHTS) < 1e-6


def test_stack_factors_takes_weights_as_they_are_and_adds_one_client_at_a_time() -> None:
    factors = unequal_clients()
    total = stack_factors(factors[:1], [1.0])
    for f, weight in zip(factors[1:], WEIGHTS[1:], strict=True):
        total = stack_factors([total, f], [1.0, weight])
    torch.testing.assert_close(delta(total), 8 * mean_delta(factors, WEIGHTS), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_svd_is_the_truncation_of_the_dense_mean(rank: int) -> None:
    factors = unequal_clients()
    best = aggregate_svd(factors, WEIGHTS, rank=rank, scaling=2.0)
    left, sizes, right_t = torch.linalg.svd(mean_delta(factors, WEIGHTS))
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


def test_svd_works_for_a_stack_that_is_wider_than_the_weight() -> None:
    factors = [client(seed, rank=20) for seed in range(4)]  # rank 80 in a 24 x 40 weight
    full = aggregate_svd(factors, [1, 1, 1, 1], rank=OUT, scaling=1.0)
    torch.testing.assert_close(delta(full), mean_delta(factors, [1, 1, 1, 1]), atol=1e-4, rtol=1e-4)


def test_svd_pads_to_the_rank_asked_for_with_ranks_that_can_still_be_trained() -> None:
    factors = [client(0, rank=2), client(1, rank=3)]
    padded = aggregate_svd(factors, [1, 1], rank=8, scaling=2.0)
    assert padded.rank == 8
    torch.testing.assert_close(delta(padded), mean_delta(factors, [1, 1]), atol=1e-5, rtol=1e-5)
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


def test_freeze_a_is_exact() -> None:
    shared = client(0)
    factors = [shared, shared._replace(up=client(1).up), shared._replace(up=client(2).up)]
    mean = aggregate_freeze_a(factors, WEIGHTS)
    assert torch.equal(mean.down, shared.down)
    torch.testing.assert_close(delta(mean), mean_delta(factors, WEIGHTS), atol=1e-5, rtol=1e-5)
    assert aggregation_error(mean, factors, WEIGHTS) < 1e-6


def test_order_of_the_clients_does_not_matter() -> None:
    factors = [client(seed) for seed in range(3)]
    order = [2, 0, 1]
    shuffled, weights = [factors[i] for i in order], [WEIGHTS[i] for i in order]
    for aggregate in (aggregate_separate, aggregate_stack):
        torch.testing.assert_close(
            delta(aggregate(factors, WEIGHTS)), delta(aggregate(shuffled, weights))
        )
    svd = aggregate_svd(factors, WEIGHTS, rank=4, scaling=2.0)
    other = aggregate_svd(shuffled, weights, rank=4, scaling=2.0)
    torch.testing.assert_close(svd.up, other.up)
    torch.testing.assert_close(svd.down, other.down)


def test_only_the_ratios_of_the_weights_matter() -> None:
    factors = [client(seed) for seed in range(3)]
    small = [w / 100 for w in WEIGHTS]
    for aggregate in (aggregate_separate, aggregate_stack):
        torch.testing.assert_close(
            delta(aggregate(factors, small)), delta(aggregate(factors, WEIGHTS))
        )
    assert aggregation_error(aggregate_stack(factors, small), factors, WEIGHTS) < 1e-6


def test_one_client_comes_back_unchanged_from_all_four() -> None:
    factors = [client(0)]
    for aggregate in (
        aggregate_separate(factors, [3]),
        aggregate_stack(factors, [3]),
        aggregate_svd(factors, [3], rank=4, scaling=2.0),
        aggregate_freeze_a(factors, [3]),
    ):
        torch.testing.assert_close(delta(aggregate), delta(factors[0]), atol=1e-4, rtol=1e-5)


def test_error_is_the_relative_distance_from_the_dense_mean() -> None:
    factors = [client(seed) for seed in range(3)]
    separate = aggregate_separate(factors, WEIGHTS)
    exact = mean_delta(factors, WEIGHTS)
    expected = ((delta(separate) - exact).norm() / exact.norm()).item()
    assert aggregation_error(separate, factors, WEIGHTS) == pytest.approx(expected, rel=1e-6)
    # An accumulator that keeps client 0 would go unnoticed if the error were taken against it.
    assert aggregation_error(factors[0], factors, WEIGHTS) > 0.5


def test_error_of_an_exact_aggregate_survives_the_rounding_of_its_square() -> None:
    for seed in range(20):  # some of the squares come out below zero
        factors = [client(seed), client(seed + 1)]
        factors = [LoraFactors(f.down.double(), f.up.double(), f.scaling) for f in factors]
        exact = aggregate_svd(factors, [1, 2], rank=8, scaling=1.0)
        assert 0 <= aggregation_error(exact, factors, [1, 2]) < 1e-7


def test_error_of_nothing_is_zero() -> None:
    zero = client(0)._replace(up=torch.zeros(OUT, 4))
    assert aggregation_error(zero, [zero], [1]) == 0
    assert aggregation_error(client(0), [zero], [1]) == math.inf
    assert aggregation_error(zero, [client(0)], [1]) == pytest.approx(1)


def test_separate_error_grows_with_the_spread_of_the_clients_and_svd_is_never_worse() -> None:
    """The measured figures: about 0.3, 8, 28 and 81 % for 8 clients of rank 8."""
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(*shape, generator=generator) for shape in ((8, 256), (256, 8)))
    separate, svd = [], []
    for spread in (0.1, 0.5, 1.0, 3.0):
        factors = [
            LoraFactors(
                down + spread * torch.randn(8, 256, generator=generator),
                up + spread * torch.randn(256, 8, generator=generator),
                2.0,
            )
            for _ in range(8)
        ]
        weights = [1.0] * 8
        separate.append(aggregation_error(aggregate_separate(factors, weights), factors, weights))
        best = aggregate_svd(factors, weights, rank=8, scaling=2.0)
        svd.append(aggregation_error(best, factors, weights))
    assert separate == pytest.approx([0.0035, 0.08, 0.28, 0.81], rel=0.15)
    assert all(best <= other for best, other in zip(svd, separate, strict=True))


def test_bf16_factors_come_back_in_bf16_and_are_not_summed_in_it() -> None:
    factors = [
        LoraFactors(f.down.bfloat16(), f.up.bfloat16(), f.scaling) for f in map(client, range(3))
    ]
    svd = aggregate_svd(factors, WEIGHTS, rank=12, scaling=2.0)
    assert svd.up.dtype == svd.down.dtype == torch.bfloat16
    assert aggregation_error(svd, factors, WEIGHTS) < 4e-3  # bf16 keeps 8 bits: 2 ** -8
    doubles = [LoraFactors(f.down.double(), f.up.double(), f.scaling) for f in factors]
    assert torch.equal(svd.up, aggregate_svd(doubles, WEIGHTS, rank=12, scaling=2.0).up.bfloat16())
    assert aggregate_separate(factors, WEIGHTS).up.dtype == torch.bfloat16


def test_unequal_clients_are_refused_where_factors_are_averaged() -> None:
    for aggregate in (aggregate_separate, aggregate_freeze_a):
        with pytest.raises(ValueError, match=r"ranks \[4, 2, 8\]"):
            aggregate(unequal_clients(), WEIGHTS)
        with pytest.raises(ValueError, match=r"scalings \[2.0, 1.0\]"):
            aggregate([client(0), client(0, scaling=1.0)], [1, 1])
    with pytest.raises(ValueError, match=r"factors\[1\].down differs from factors\[0\].down"):
        aggregate_freeze_a([client(0), client(1)], [1, 1])


def test_errors() -> None:
    wider = LoraFactors(torch.ones(4, IN + 1), torch.ones(OUT, 4), 2.0)
    with pytest.raises(ValueError, match=r"factors\[1\] updates a weight of shape \(24, 41\)"):
        aggregate_stack([client(0), wider], [1, 1])
    transposed = LoraFactors(torch.ones(IN, 4), torch.ones(4, OUT), 2.0)
    with pytest.raises(ValueError, match=r"factors\[0\] must have down \(r, in\) and up"):
        aggregate_svd([transposed], [1], rank=2, scaling=1.0)
    with pytest.raises(ValueError, match="at least one client"):
        stack_factors([], [])
    with pytest.raises(ValueError, match="one weight a client: got 1 for 2"):
        stack_factors([client(0), client(1)], [1])
    with pytest.raises(ValueError, match="sum of the weights must be positive"):
        aggregate_stack([client(0)], [0])
    with pytest.raises(ValueError, match="rank of at least 1 and a scaling above 0, got 0"):
        compress(client(0), 0, scaling=1.0)
    with pytest.raises(ValueError, match=r"above 0, got 2, 0\.0"):
        compress(client(0), 2, scaling=0.0)
