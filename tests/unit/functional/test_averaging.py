"""Weighted means and modality-aware weights on three clients, worked out by hand."""

import pytest
import torch

from mlecs_lightning.functional import modality_aware_weights, normalise_weights, weighted_mean

STATES = [
    {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([10.0])},
    {"a": torch.tensor([[3.0, 6.0]]), "c": torch.tensor(7.0)},
    {"a": torch.tensor([[5.0, 0.0]]), "b": torch.tensor([40.0])},
]


def test_weighted_mean_of_three_clients_with_totals_by_key() -> None:
    mean = weighted_mean(STATES, [1, 1, 2])
    assert list(mean) == ["a", "b", "c"]
    assert torch.equal(mean["a"], torch.tensor([[3.5, 2.0]]))  # (1 + 3 + 10) / 4, (2 + 6 + 0) / 4
    assert torch.equal(mean["b"], torch.tensor([30.0]))  # (10 + 80) / 3: the second has no b
    assert torch.equal(mean["c"], torch.tensor(7.0))


def test_neither_scale_of_weights_nor_order_of_clients_matters() -> None:
    mean = weighted_mean(STATES, [1, 1, 2])
    other = weighted_mean(STATES[::-1], [0.02, 0.01, 0.01])
    assert mean.keys() == other.keys()
    for key in mean:
        torch.testing.assert_close(mean[key], other[key])


def test_every_key_and_every_client_counts() -> None:
    """Fails if only the first key is averaged, or the sum starts over with some client."""
    states = [{k: torch.full((2,), float(10**j)) for k in "xyz"} for j in range(3)]
    mean = weighted_mean(states, [1, 1, 1])
    for key in "xyz":
        torch.testing.assert_close(mean[key], torch.full((2,), 37.0))


def test_sums_in_float64_and_returns_the_dtype_of_the_clients() -> None:
    ones = [{"w": torch.ones(1, dtype=torch.bfloat16)} for _ in range(1000)]
    mean = weighted_mean(ones, [1.0] * 1000)["w"]
    assert mean.dtype == torch.bfloat16
    assert mean.item() == 1.0  # a running sum in bf16 stops growing at 256 terms
    mixed = [{"w": torch.ones(1, dtype=torch.bfloat16)}, {"w": torch.zeros(1)}]
    assert weighted_mean(mixed, [1, 2])["w"].dtype == torch.float32
    steps = [{"steps": torch.tensor(3)}, {"steps": torch.tensor(6)}]
    assert weighted_mean(steps, [1, 8])["steps"] == 6  # 5.67, rounded and not cut off


def test_inputs_are_left_as_they_were() -> None:
    state = {"w": torch.ones(2, dtype=torch.float64)}
    mean = weighted_mean([state], [1])["w"]
    mean += 1
    assert torch.equal(state["w"], torch.ones(2, dtype=torch.float64))


def test_shape_mismatch_names_the_key() -> None:
    states = [{"ok": torch.ones(1), "w": torch.ones(2)}, {"ok": torch.ones(1), "w": torch.ones(1)}]
    with pytest.raises(ValueError, match=r"key 'w' .* \[\(2,\), \(1,\)\]"):
        weighted_mean(states, [1, 1])


def test_weights_that_sum_to_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="sum of the weights must be positive"):
        weighted_mean(STATES, [0, 0, 0])
    with pytest.raises(ValueError, match="every client that has key 'c' has a weight of zero"):
        weighted_mean(STATES, [1, 0, 1])
    with pytest.raises(ValueError, match=r"weights\[1\] must be finite and not negative, got -1"):
        weighted_mean(STATES, [3, -1, 1])
    with pytest.raises(ValueError, match=r"weights\[0\] must be finite"):
        normalise_weights([float("nan")], 1)
    with pytest.raises(ValueError, match="got 2 weights for 3"):
        weighted_mean(STATES, [1, 1])
    with pytest.raises(ValueError, match="at least one client"):
        weighted_mean([], [])


def test_modality_aware_weights_of_three_clients() -> None:
    assert modality_aware_weights([3, 2, 1]) == pytest.approx([1 / 2, 1 / 3, 1 / 6])
    assert modality_aware_weights([3, 2, 1], [10, 30, 10]) == pytest.approx([0.3, 0.6, 0.1])
    assert modality_aware_weights([3, 2], [0, 5]) == [0.0, 1.0]


def test_modality_aware_weights_errors() -> None:
    with pytest.raises(ValueError, match=r"modality_counts\[1\] must be at least 1, got 0"):
        modality_aware_weights([2, 0])
    with pytest.raises(ValueError, match="got 1 for 2"):
        modality_aware_weights([1, 2], [3])
    with pytest.raises(ValueError, match="must be positive"):
        modality_aware_weights([1, 2], [0, 0])
    with pytest.raises(ValueError, match="not negative"):
        modality_aware_weights([1, 2], [-1, 5])
    with pytest.raises(ValueError, match="at least one client"):
        modality_aware_weights([])
