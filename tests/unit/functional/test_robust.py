"""Coordinate-wise median and trimmed mean against numpy, scipy and answers worked out by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean

from mlecs_lightning.functional import coordinate_median, trimmed_mean

STATES = [
    {"a": torch.tensor([[1.0, 9.0]]), "b": torch.tensor([4.0])},
    {"a": torch.tensor([[5.0, -2.0]]), "c": torch.tensor(7.0)},
    {"a": torch.tensor([[2.0, 3.0]]), "b": torch.tensor([1.0])},
    {"a": torch.tensor([[8.0, 0.0]]), "b": torch.tensor([40.0])},
]


def numbers(*values: float) -> list[dict[str, torch.Tensor]]:
    return [{"w": torch.tensor([v], dtype=torch.float64)} for v in values]


# Known answers --------------------------------------------------------------------------------


def test_median_of_four_clients_key_by_key() -> None:
    median = coordinate_median(STATES)
    assert list(median) == ["a", "b", "c"]
    assert median["a"].tolist() == [[3.5, 1.5]]  # between 2 and 5, between 0 and 3
    assert median["b"].tolist() == [4.0]  # of 1, 4 and 40: the second client has no b
    assert median["c"].item() == 7.0
    assert coordinate_median(STATES[:3])["a"].tolist() == [[2.0, 3.0]]


def test_trimmed_mean_of_four_clients_key_by_key() -> None:
    trimmed = trimmed_mean(STATES, trim=0.34)
    assert list(trimmed) == ["a", "b", "c"]
    assert trimmed["a"].tolist() == [[3.5, 1.5]]
    assert trimmed["b"].tolist() == [4.0]  # floor(0.34 * 3) = 1 of those that have b
    assert trimmed["c"].item() == 7.0


@pytest.mark.parametrize(
    ("trim", "mean"),
    [
        (0.0, 222.4),
        (0.19, 222.4),  # floor(0.95) = 0
        (0.2, 5.0),  # 2, 3 and 10 stay
        (0.39, 5.0),
        (0.4, 3.0),
        (math.nextafter(0.5, 0.0), 3.0),
    ],
)
def test_share_cut_off_is_rounded_down_to_whole_clients(trim: float, mean: float) -> None:
    assert trimmed_mean(numbers(1097, 2, 0, 3, 10), trim=trim)["w"].item() == pytest.approx(mean)


def test_a_value_always_stays() -> None:
    for count in range(1, 60):
        values = numbers(*range(count))
        trimmed = trimmed_mean(values, trim=math.nextafter(0.5, 0.0))["w"].item()
        assert trimmed == coordinate_median(values)["w"].item() == (count - 1) / 2


def test_one_client_comes_back_as_it_was() -> None:
    for result in (coordinate_median(STATES[:1]), trimmed_mean(STATES[:1], trim=0.49)):
        assert result.keys() == STATES[0].keys()
        for key, tensor in result.items():
            assert torch.equal(tensor, STATES[0][key])
            assert tensor.data_ptr() != STATES[0][key].data_ptr()


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, 1.5), (torch.float32, 1.5), (torch.float64, 1.5), (torch.int64, 2)],
)
def test_dtype_is_that_of_the_clients(dtype: torch.dtype, expected: float) -> None:
    states = [{"w": torch.tensor(v, dtype=dtype)} for v in (1, 2)]
    for result in (coordinate_median(states)["w"], trimmed_mean(states, trim=0.1)["w"]):
        assert (result.dtype, result.item()) == (dtype, expected)
    mixed = [{"w": torch.ones(1).bfloat16()}, {"w": torch.ones(1)}]
    assert coordinate_median(mixed)["w"].dtype == torch.float32


def test_sums_are_in_float64() -> None:
    states = [{"w": torch.tensor([v])} for v in (-1e9, *[2.0**24, 1.0, 1.0, 1.0, 1.0], 1e9)]
    # In float32, 2^24 + 1 is 2^24.
    assert trimmed_mean(states, trim=0.15)["w"].item() == (2**24 + 4) / 5


# Properties -----------------------------------------------------------------------------------

VALUES = st.integers(1, 11).flatmap(
    lambda n: st.lists(
        st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=6), min_size=n, max_size=n
    )
)


@settings(max_examples=150, deadline=None, database=None)
@given(VALUES, st.floats(0, 0.5, exclude_max=True))
def test_equals_numpy_and_scipy(values: list[list[float]], trim: float) -> None:
    array = np.array(values).reshape(-1, 2, 3)
    states = [{"w": torch.from_numpy(row)} for row in array]
    assert np.array_equal(coordinate_median(states)["w"].numpy(), np.median(array, axis=0))
    np.testing.assert_allclose(
        trimmed_mean(states, trim=trim)["w"].numpy(),
        trim_mean(array, trim, axis=0),
        rtol=1e-12,
        atol=1e-9,
    )


def test_order_of_the_clients_does_not_show_in_any_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    states = [{"w": torch.randn(7, 5, generator=generator)} for _ in range(5)]
    for state, zero in zip(states, (0.0, -0.0, -0.0, 0.0, -0.0), strict=True):
        state["w"][0] = zero  # equal numbers, other bits

    def bits(order: tuple[int, ...]) -> tuple[bytes, bytes]:
        permuted = [states[i] for i in order]
        results = (coordinate_median(permuted), trimmed_mean(permuted, trim=0.2))
        return results[0]["w"].numpy().tobytes(), results[1]["w"].numpy().tobytes()

    assert len({bits(order) for order in itertools.permutations(range(5))}) == 1


@pytest.mark.parametrize("factor", [1e6, -1e6])
def test_one_hostile_client_moves_them_within_the_honest_spread_and_the_mean_far_off(
    factor: float,
) -> None:
    generator = torch.Generator().manual_seed(1)
    states = [{"w": torch.randn(50, generator=generator)} for _ in range(6)]
    hostile = [*states[:5], {"w": states[5]["w"] * factor}]
    honest = torch.stack([state["w"] for state in states[:5]])
    low, high = honest.amin(0), honest.amax(0)
    for robust in (coordinate_median, lambda s: trimmed_mean(s, trim=0.2)):
        before, after = robust(states)["w"], robust(hostile)["w"]
        assert bool(((low <= after) & (after <= high)).all())
        moved, spread = (after - before).abs(), torch.stack([s["w"] for s in states])
        assert bool((moved <= spread.amax(0) - spread.amin(0)).all())
        assert moved.max() > 0
    mean = torch.stack([state["w"] for state in hostile]).mean(0)
    assert (mean - honest.mean(0)).abs().median() > 1e4


def test_values_that_are_no_numbers_are_cut_off_as_the_largest() -> None:
    hostile = numbers(1, 2, 3, math.nan, math.inf)
    assert coordinate_median(hostile)["w"].item() == 3.0
    assert trimmed_mean(numbers(1, 2, 3, 4, math.nan), trim=0.2)["w"].item() == 3.0


# Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("trim", [0.5, 0.7, 1.0, -0.1, math.nan, math.inf])
def test_share_lies_in_its_range(trim: float) -> None:
    with pytest.raises(ValueError, match=rf"trim must lie in \[0, 0.5\), got {trim}"):
        trimmed_mean(STATES, trim=trim)


def test_no_clients_and_shapes_that_differ_are_refused() -> None:
    unequal = [{"ok": torch.ones(1), "w": torch.ones(2)}, {"ok": torch.ones(1), "w": torch.ones(1)}]
    for robust in (coordinate_median, lambda s: trimmed_mean(s, trim=0.1)):
        with pytest.raises(ValueError, match="at least one client"):
            robust([])
        with pytest.raises(ValueError, match=r"key 'w' .* \[\(2,\), \(1,\)\]"):
            robust(unequal)
