"""Sparse, quantised updates: bounds, exact bytes, and what error feedback promises."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mlecs_lightning.functional.compression import (
    count_kept,
    dequantise_blocks,
    largest,
    pack_bits,
    packed_bytes,
    quantise_blocks,
    unpack_bits,
    with_error_feedback,
)

floats = st.floats(-1e6, 1e6, width=32)
vectors = st.lists(floats, min_size=1, max_size=80).map(torch.tensor)


def through(bits: int, block: int, values: Tensor) -> Tensor:
    return dequantise_blocks(*quantise_blocks(values, bits, block), bits, block)


# The largest --------------------------------------------------------------------------------------


def test_the_largest_magnitudes_are_found_wherever_they_are() -> None:
    values = torch.tensor([[0.5, -4.0, 0.0], [3.0, -0.1, 4.0]])
    assert largest(values, 0.5).tolist() == [1, 3, 5]
    assert largest(values, 1.0).tolist() == [0, 1, 2, 3, 4, 5]
    assert largest(values, 1e-9).tolist() == [1]  # of the two 4s the first, and never none
    assert largest(torch.zeros(4), 0.5).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("size", "fraction", "kept"),
    [(10, 0.25, 3), (10, 0.24, 2), (3, 0.5, 2), (1, 0.01, 1), (0, 1, 0)],
)
def test_a_share_is_rounded(size: int, fraction: float, kept: int) -> None:
    assert count_kept(size, fraction) == kept


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, math.nan])
def test_a_share_beyond_all_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\]"):
        largest(torch.ones(3), fraction)


@given(vectors, st.floats(0.01, 1.0))
def test_no_value_that_is_left_out_is_larger_than_one_that_is_kept(
    values: Tensor, fraction: float
) -> None:
    at = largest(values, fraction)
    rest = torch.ones(len(values), dtype=torch.bool).index_fill(0, at, False)
    assert at.tolist() == sorted(set(at.tolist()))
    if rest.any():
        assert values[rest].abs().max() <= values[at].abs().min()


# Quantisation -------------------------------------------------------------------------------------


def test_levels_by_hand() -> None:
    """Two bits over 3: levels -3, -1, 1, 3. A block of two has its own step."""
    codes, steps = quantise_blocks(torch.tensor([3.0, -0.9, 0.2, -2.1, 0.5, -0.1]), 2, 4)
    assert codes.tolist() == [3, 1, 2, 0, 3, 1]
    assert steps.tolist() == pytest.approx([2.0, 1 / 3])
    back = dequantise_blocks(codes, steps, 2, 4)
    assert back.tolist() == pytest.approx([3, -1, 1, -3, 0.5, -1 / 6])


@pytest.mark.parametrize("bits", [2, 4, 8])
@settings(max_examples=60)
@given(values=vectors, block=st.integers(1, 20))
def test_nothing_is_off_by_more_than_half_a_step(bits: int, values: Tensor, block: int) -> None:
    back = through(bits, block, values)
    assert back.shape == values.shape
    for start in range(0, len(values), block):
        part = values[start : start + block]
        bound = float(part.abs().max()) / (2**bits - 1)
        assert (back[start : start + block] - part).abs().max() <= bound * (1 + 1e-5) + 1e-30


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_the_bound_is_reached(bits: int) -> None:
    """Zero is half a step from its level: a finer bound would be wrong."""
    values = torch.tensor([1.0, 0.0])
    assert float(through(bits, 2, values)[1]) == pytest.approx(1 / (2**bits - 1))


def test_what_is_zero_and_what_is_nearly_so_stays_finite() -> None:
    assert through(4, 4, torch.zeros(6)).tolist() == [0] * 6
    tiny = torch.tensor([1e-45, 0.0, -1e-45])  # the smallest there is: no step is not zero
    assert through(8, 3, tiny).abs().max() <= 1e-44
    assert quantise_blocks(torch.empty(0), 4, 8)[1].shape == (0,)


@pytest.mark.parametrize(("bits", "block"), [(3, 8), (32, 8), (0, 8), (4, 0)])
def test_other_widths_are_refused(bits: int, block: int) -> None:
    with pytest.raises(ValueError, match=r"bits must be one of \(2, 4, 8, 16\)"):
        quantise_blocks(torch.ones(3), bits, block)


# Bytes --------------------------------------------------------------------------------------------


def test_codes_lie_one_behind_the_other() -> None:
    assert pack_bits(torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 1]), 1).tolist() == [0b1101, 1]
    assert pack_bits(torch.tensor([10, 3, 15]), 4).tolist() == [0x3A, 0x0F]
    assert pack_bits(torch.tensor([258]), 16).tolist() == [2, 1]
    rows = pack_bits(torch.tensor([[1, 2, 3], [3, 0, 0]]), 2)
    assert rows.tolist() == [[0b111001], [0b000011]]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@settings(max_examples=25)
@given(data=st.data())
def test_codes_come_back(bits: int, data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    packed = pack_bits(torch.tensor(codes, dtype=torch.int64), bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == packed_bytes(len(codes), bits) == math.ceil(len(codes) * bits / 8)
    assert unpack_bits(packed, bits, len(codes)).tolist() == codes


def test_bytes_that_are_no_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="2 bytes for 3 codes of 2 bits"):
        unpack_bits(torch.zeros(2, dtype=torch.uint8), 2, 3)
    with pytest.raises(ValueError, match="the bits after the last code must be zero"):
        unpack_bits(torch.tensor([0b01000000], dtype=torch.uint8), 2, 3)


# Error feedback -----------------------------------------------------------------------------------


def compressor(fraction: float, bits: int) -> Callable[[Tensor], Tensor]:
    def compress(values: Tensor) -> Tensor:
        at = largest(values, fraction)
        return torch.zeros_like(values).index_put((at,), through(bits, 8, values[at]).to(values))

    return compress


@settings(max_examples=40, deadline=None)
@example(updates=[[1e-45] + [0.0] * 11], fraction=0.1, bits=2)
@example(updates=[[63 * 1e-45] + [1e-45] * 11], fraction=1.0, bits=8)
@given(
    updates=st.lists(st.lists(floats, min_size=12, max_size=12), min_size=1, max_size=6),
    fraction=st.sampled_from([0.1, 0.25, 0.5, 1.0]),
    bits=st.sampled_from([2, 4, 8]),
)
def test_what_is_applied_comes_to_the_true_update(
    updates: list[list[float]], fraction: float, bits: int
) -> None:
    """While updates come, the sum lacks the residual alone; when they stop, the residual fades.

    Once as many messages without an update have come as name every place, its largest value is at
    most 1 / (2^b - 1) of what it was: each message brings the largest ones that far down. But not
    below the smallest normal number of float32, where a step has no digits left.
    """
    compress = compressor(fraction, bits)
    applied, residual = torch.zeros(12, dtype=torch.float64), None
    total = torch.tensor(updates, dtype=torch.float64).sum(0)
    for update in updates:
        sent, residual = with_error_feedback(
            torch.tensor(update, dtype=torch.float64), residual, compress
        )
        applied += sent
    assert residual is not None
    torch.testing.assert_close(applied + residual, total, rtol=1e-9, atol=1e-6)
    start, sweeps = float(residual.abs().max()), 4
    for _ in range(sweeps * math.ceil(12 / count_kept(12, fraction))):
        sent, residual = with_error_feedback(torch.zeros(12), residual, compress)
        applied += sent
    faded = start / (2**bits - 1) ** sweeps * 1.01 + 1e-5 * start
    assert float(residual.abs().max()) <= faded + torch.finfo(torch.float32).tiny
    torch.testing.assert_close(applied + residual, total, rtol=1e-9, atol=1e-6)


def test_without_it_a_small_update_would_never_arrive() -> None:
    """Ten times the same update, of which one value in two is sent: by hand."""
    update, compress = torch.tensor([1.0, 0.6]), compressor(0.5, 8)
    plain = sum((compress(update) for _ in range(10)), torch.zeros(2))
    assert plain.tolist() == [10.0, 0.0]
    applied, residual = torch.zeros(2), None
    for _ in range(10):
        sent, residual = with_error_feedback(update, residual, compress)
        applied += sent
    assert (applied - 10 * update).abs().max() < 1.7
    assert applied[1] > 4
