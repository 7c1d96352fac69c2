import pytest
import torch

from mlecs_lightning.aggregation.update_sum import UpdateSum
from mlecs_lightning.functional import LoraFactors


def factors(seed: int, *, rank: int, rows: int, columns: int) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, columns, generator=generator)
    return LoraFactors(down, torch.randn(rows, rank, generator=generator), 0.5)


def dense(each: LoraFactors) -> torch.Tensor:
    return each.scaling * each.up.double() @ each.down.double()


@pytest.mark.parametrize(("rows", "columns"), [(6, 10), (10, 6), (7, 7)])
@pytest.mark.parametrize("clients", [1, 2, 20])
def test_mean_is_exact_and_never_larger_than_the_matrix(
    rows: int, columns: int, clients: int
) -> None:
    total, expected = UpdateSum(), torch.zeros(rows, columns, dtype=torch.float64)
    for seed in range(clients):
        each = factors(seed, rank=1 + seed % 3, rows=rows, columns=columns)
        total.add(each, weight=seed + 1.0)
        expected += (seed + 1.0) * dense(each)
        assert total.numel <= rows * columns
    mean = total.mean(4.0)
    assert mean.rank <= min(rows, columns)
    torch.testing.assert_close(dense(mean), expected / 4, rtol=1e-12, atol=1e-12)
    other = factors(99, rank=2, rows=rows, columns=columns)
    missed, size = total.error(other, total=4.0)
    assert missed == pytest.approx(float((dense(other) - expected / 4).square().sum()), rel=1e-9)
    assert size == pytest.approx(float((expected / 4).square().sum()), rel=1e-9)


@pytest.mark.parametrize("clients", [1, 3, 40])
def test_a_matrix_in_single_precision_says_how_far_off_a_mean_is(clients: int) -> None:
    single, double = UpdateSum(torch.float32), UpdateSum()
    for seed in range(clients):
        each = factors(seed, rank=4, rows=16, columns=24)
        single.add(each, weight=seed + 1.0)
        double.add(each, weight=seed + 1.0)
    assert double.numel == single.numel
    total = clients * (clients + 1) / 2
    other = factors(99, rank=4, rows=16, columns=24)
    assert single.error(other, total=total) == pytest.approx(
        double.error(other, total=total), rel=1e-5
    )
    near = single.mean(total)
    missed, size = single.error(near, total=total)
    assert missed <= 1e-12 * size


def test_few_clients_are_held_as_factors() -> None:
    total = UpdateSum()
    total.add(factors(0, rank=2, rows=64, columns=64), weight=1.0)
    assert total.numel == 2 * (64 + 64)


@pytest.mark.parametrize("clients", [1, 20])
def test_update_of_another_shape_is_refused(clients: int) -> None:
    total = UpdateSum()
    for seed in range(clients):
        total.add(factors(seed, rank=2, rows=8, columns=8), weight=1.0)
    with pytest.raises(ValueError, match=r"shape \(8, 9\)"):
        total.add(factors(0, rank=2, rows=8, columns=9), weight=1.0)


def test_nothing_has_no_mean() -> None:
    assert UpdateSum().numel == 0
    with pytest.raises(ValueError, match="no updates"):
        UpdateSum().mean(1.0)
