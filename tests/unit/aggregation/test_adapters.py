import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import trim_mean
from torch import Tensor

from mlecs_lightning.aggregation import AdapterAggregate, AdapterAggregator, Aggregation
from mlecs_lightning.aggregation.adapters import fit_rank
from tests.unit.updates import dense, mean, relative_error

# (out, in) of each layer; the first is wider than high, the second higher than wide.
LAYERS = {"x": (6, 8), "y": (5, 4)}
WEIGHTS = [1.0, 3.0, 2.0]
ROBUST: tuple[Aggregation, ...] = ("median", "trimmed_mean")
MEANS: tuple[Aggregation, ...] = ("separate", "stack", "svd", "freeze_a")
METHODS = MEANS + ROBUST


def adapter(seed: int, *, rank: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer, (out, width) in LAYERS.items():
        tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, width, generator=generator)
        tensors[f"{layer}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    return tensors


def aggregate(
    method: Aggregation,
    states: list[dict[str, Tensor]],
    *,
    weights: list[float] = WEIGHTS,
    scalings: tuple[float, ...] = (2.0, 2.0, 2.0),
    rank: int = 2,
    scaling: float = 2.0,
    trim: float = 0.34,
) -> AdapterAggregate:
    total = AdapterAggregator(method, rank=rank, scaling=scaling, trim=trim)
    for state, weight, own in zip(states, weights, scalings, strict=True):
        total.add(state, weight=weight, scaling=own)
    return total.result()


# Known answers --------------------------------------------------------------------------------


def test_separate_averages_each_factor_by_hand() -> None:
    states = [
        {"x.lora_A.weight": torch.tensor([[a]]), "x.lora_B.weight": torch.tensor([[b]])}
        for a, b in ((1.0, 2.0), (5.0, -2.0))
    ]
    result = aggregate("separate", states, weights=[1.0, 3.0], scalings=(1.0, 1.0), scaling=1.0)
    assert {k: t.item() for k, t in result.adapter.items()} == {
        "x.lora_A.weight": 4.0,  # (1 + 3 * 5) / 4
        "x.lora_B.weight": -1.0,  # (2 - 3 * 2) / 4
    }
    # The exact mean of the updates is (1 * 2 - 3 * 10) / 4 = -7; -1 * 4 misses it by 3.
    assert result.error == pytest.approx(3 / 7)
    assert result.clients == 2


def test_freeze_a_is_the_mean_of_b() -> None:
    states = [{"x.lora_B.weight": torch.tensor([[b, 1.0]])} for b in (2.0, -2.0)]
    result = aggregate("freeze_a", states, weights=[1.0, 3.0], scalings=(1.0, 1.0))
    assert list(result.adapter) == ["x.lora_B.weight"]
    assert result.adapter["x.lora_B.weight"].tolist() == [[-1.0, 1.0]]
    assert result.error == 0.0


def test_stack_is_exact_whatever_the_ranks_and_scalings() -> None:
    states = [adapter(0, rank=1), adapter(1, rank=2), adapter(2, rank=3)]
    scalings = (0.5, 2.0, 4.0)
    result = aggregate("stack", states, scalings=scalings, rank=6, scaling=1.0)
    for layer in LAYERS:
        parts = [dense(s, layer, c) for s, c in zip(states, scalings, strict=True)]
        expected = mean(list(zip(parts, WEIGHTS, strict=True)))
        torch.testing.assert_close(dense(result.adapter, layer, 1.0), expected, rtol=0, atol=1e-5)
        assert result.adapter[f"{layer}.lora_A.weight"].shape[0] == 6
    assert result.error < 1e-6


def test_svd_is_the_truncated_svd_of_the_dense_mean() -> None:
    states = [adapter(0, rank=1), adapter(1, rank=2), adapter(2, rank=3)]
    scalings = (0.5, 2.0, 4.0)
    result = aggregate("svd", states, scalings=scalings, rank=2, scaling=3.0)
    missed = size = 0.0
    for layer in LAYERS:
        parts = [dense(s, layer, c) for s, c in zip(states, scalings, strict=True)]
        exact = mean(list(zip(parts, WEIGHTS, strict=True)))
        left, values, right = torch.linalg.svd(exact, full_matrices=False)
        best = left[:, :2] @ values[:2].diag() @ right[:2]
        torch.testing.assert_close(dense(result.adapter, layer, 3.0), best, rtol=0, atol=1e-5)
        assert result.adapter[f"{layer}.lora_A.weight"].shape[0] == 2
        missed += float(values[2:].square().sum())
        size += float(values.square().sum())
    assert result.error == pytest.approx(math.sqrt(missed / size), rel=1e-5)


def error_by_hand(result: AdapterAggregate, states: list[dict[str, Tensor]]) -> float:
    """Relative distance of an aggregate from the exact weighted mean, over all layers together."""
    exact = [
        mean(zip((dense(s, layer, 2.0) for s in states), WEIGHTS, strict=True)) for layer in LAYERS
    ]
    return relative_error([dense(result.adapter, layer, 2.0) for layer in LAYERS], exact)


def test_error_is_the_relative_distance_over_all_layers_together() -> None:
    states = [adapter(seed) for seed in range(3)]
    result = aggregate("separate", states)
    assert result.error == pytest.approx(error_by_hand(result, states), rel=1e-5)
    assert result.error > 0.1


def test_error_where_the_exact_mean_of_a_layer_is_zero() -> None:
    """The updates 1 * 3 and 3 * -1 cancel; the means of A and B, 2 and 1, do not."""
    x = {"x.lora_A.weight": (1.0, 3.0), "x.lora_B.weight": (3.0, -1.0)}
    y = {"y.lora_A.weight": (1.0, 1.0), "y.lora_B.weight": (2.0, 4.0)}
    errors = []
    for layers in (x, x | y):
        states = [{k: torch.tensor([[v[i]]]) for k, v in layers.items()} for i in range(2)]
        result = aggregate("separate", states, weights=[1, 1], scalings=(1, 1), scaling=1)
        errors.append(result.error)
    assert errors == [math.inf, pytest.approx(2 / 3)]  # y alone has an exact mean, 3, and no error


def test_error_of_separate_grows_with_the_spread_of_the_clients_and_svd_is_never_worse() -> None:
    """The measured figures: about 0.3, 8, 28 and 81 % for 8 clients of rank 8."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"x.lora_A.weight": (8, 256), "x.lora_B.weight": (256, 8)}
    common = {k: torch.randn(*shape, generator=generator) for k, shape in shapes.items()}
    errors: dict[Aggregation, list[float]] = {"separate": [], "svd": []}
    for spread in (0.1, 0.5, 1.0, 3.0):
        states = [
            {k: t + spread * torch.randn(t.shape, generator=generator) for k, t in common.items()}
            for _ in range(8)
        ]
        for method, found in errors.items():
            facts = {"weights": [1.0] * 8, "scalings": (2.0,) * 8}
            found.append(aggregate(method, states, rank=8, **facts).error)
    assert errors["separate"] == pytest.approx([0.0035, 0.08, 0.28, 0.81], rel=0.15)
    assert all(svd <= other for svd, other in zip(errors["svd"], errors["separate"], strict=True))


def test_equal_clients_come_back_as_they_were() -> None:
    state = adapter(0)
    for method in ("separate", "stack", "svd", *ROBUST):
        result = aggregate(method, [state] * 3)
        assert result.error < 1e-6
        for layer in LAYERS:
            torch.testing.assert_close(
                dense(result.adapter, layer, 2.0), dense(state, layer, 2.0), rtol=0, atol=1e-5
            )


def test_untrained_adapters_have_no_error() -> None:
    states = [{k: t * ("lora_A" in k) for k, t in adapter(seed).items()} for seed in range(3)]
    for method in ("separate", "stack", "svd", *ROBUST):
        result = aggregate(method, states)
        assert result.error == 0.0
        assert all(not t.any() for k, t in result.adapter.items() if "lora_B" in k)


def test_without_clients_there_is_nothing() -> None:
    for method in METHODS:
        nothing = AdapterAggregate(adapter={}, clients=0)
        assert AdapterAggregator(method, rank=2, scaling=2.0).result() == nothing


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_must_be_positive_and_finite(weight: float) -> None:
    with pytest.raises(ValueError, match=f"positive and finite, got {weight}"):
        AdapterAggregator("svd", rank=2, scaling=2.0).add(adapter(0), weight=weight, scaling=2.0)


# Streaming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["separate", "freeze_a"])
def test_small_values_are_not_lost_in_a_sum_with_large_ones(method: Aggregation) -> None:
    values = [1e9, *[1.0] * 8, -1e9]
    states = [{f"x.lora_{f}.weight": torch.full((1, 1), v) for f in "AB"} for v in values]
    result = aggregate(method, states, weights=[1.0] * 10, scalings=(1.0,) * 10)
    assert [t.item() for t in result.adapter.values()] == pytest.approx([0.8, 0.8])


@pytest.mark.parametrize("method", METHODS)
def test_order_of_the_clients_does_not_matter(method: Aggregation) -> None:
    states = [adapter(seed) for seed in range(3)]
    results = [
        aggregate(method, [states[i] for i in order], weights=[WEIGHTS[i] for i in order])
        for order in itertools.permutations(range(3))
    ]
    for other in results[1:]:
        assert other.error == pytest.approx(results[0].error, abs=1e-6)
        for key, tensor in results[0].adapter.items():
            torch.testing.assert_close(other.adapter[key], tensor, rtol=0, atol=1e-6)
        for layer in LAYERS:
            torch.testing.assert_close(
                dense(other.adapter, layer, 2.0),
                dense(results[0].adapter, layer, 2.0),
                rtol=0,
                atol=1e-6,
            )


def test_memory_does_not_grow_with_the_clients_and_the_sum_stays_exact() -> None:
    total = AdapterAggregator("stack", rank=8, scaling=1.0)
    exact = {layer: torch.zeros(shape, dtype=torch.float64) for layer, shape in LAYERS.items()}
    for seed in range(30):
        state = adapter(seed, rank=3)
        total.add(state, weight=seed + 1.0, scaling=0.5)
        for layer, shape in LAYERS.items():
            exact[layer] += (seed + 1.0) * dense(state, layer, 0.5)
            assert total._exact[layer].numel <= shape[0] * shape[1]
    result = total.result()
    for layer in LAYERS:
        torch.testing.assert_close(
            dense(result.adapter, layer, 1.0), exact[layer] / 465, rtol=0, atol=1e-6
        )
    assert result.error < 1e-6


def test_a_layer_that_a_client_lacks_is_averaged_over_those_that_have_it() -> None:
    states = [adapter(seed) for seed in range(3)]
    states[1] = {k: t for k, t in states[1].items() if k.startswith("x.")}
    have = {"x": [0, 1, 2], "y": [0, 2]}
    for method in ("separate", "stack", "svd", "freeze_a"):
        result = aggregate(method, states, rank=6 if method == "stack" else 4)
        for layer, clients in have.items():
            if method in ("separate", "freeze_a"):
                for key in (f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"):
                    expected = mean([(states[i][key], WEIGHTS[i]) for i in clients])
                    torch.testing.assert_close(result.adapter[key], expected)
            if method == "stack" or (method, layer) == ("svd", "y"):
                parts = [(dense(states[i], layer, 2.0), WEIGHTS[i]) for i in clients]
                torch.testing.assert_close(
                    dense(result.adapter, layer, 2.0), mean(parts), rtol=0, atol=1e-5
                )


# Robust ---------------------------------------------------------------------------------------


def factor(states: list[dict[str, Tensor]], key: str) -> np.ndarray:
    return np.stack([state[key].double().numpy() for state in states])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_median_and_trimmed_mean_take_each_factor_apart_and_ignore_the_weights(count: int) -> None:
    states = [adapter(seed) for seed in range(count)]
    facts = {"weights": [10.0**i for i in range(count)], "scalings": (2.0,) * count}
    median = aggregate("median", states, **facts)
    trimmed = aggregate("trimmed_mean", states, trim=0.3, **facts)
    assert median.adapter.keys() == trimmed.adapter.keys() == states[0].keys()
    assert median.clients == trimmed.clients == count
    for key in states[0]:
        values = factor(states, key)
        assert np.array_equal(median.adapter[key], np.median(values, 0).astype(np.float32))
        expected = trim_mean(values, 0.3, 0).astype(np.float32)
        np.testing.assert_allclose(trimmed.adapter[key], expected, rtol=1e-6)


@pytest.mark.parametrize("method", ROBUST)
def test_error_of_a_robust_aggregate_is_measured_against_the_weighted_mean(
    method: Aggregation,
) -> None:
    states = [adapter(seed) for seed in range(3)]
    result = aggregate(method, states)
    assert result.error == pytest.approx(error_by_hand(result, states), rel=1e-5)
    assert result.error > 0.1
    assert aggregate(method, states, weights=[5.0, 1.0, 1.0]).error != result.error


@pytest.mark.parametrize("method", ROBUST)
def test_a_robust_aggregate_is_the_same_in_every_bit_whatever_the_order(
    method: Aggregation,
) -> None:
    states = [adapter(seed) for seed in range(5)]
    for state, zero in zip(states, (0.0, -0.0, -0.0, 0.0, -0.0), strict=True):
        state["x.lora_B.weight"][0] = zero
    bits = set()
    for order in itertools.islice(itertools.permutations(range(5)), 0, 120, 7):
        facts = {"weights": [order[i] + 1.0 for i in range(5)], "scalings": (2.0,) * 5}
        result = aggregate(method, [states[i] for i in order], trim=0.2, **facts).adapter
        bits.add(b"".join(result[key].numpy().tobytes() for key in sorted(result)))
    assert len(bits) == 1


@pytest.mark.parametrize("factor_", [1e6, -1e6])
def test_one_hostile_adapter_moves_a_robust_aggregate_within_the_honest_spread(
    factor_: float,
) -> None:
    states = [adapter(seed) for seed in range(6)]
    hostile = [*states[:5], {k: t * factor_ for k, t in states[5].items()}]
    # It claims to have nearly all of the samples, too.
    facts = {"weights": [1.0] * 5 + [2.0**31], "scalings": (2.0,) * 6, "trim": 0.2}
    for method in METHODS[:1] + ROBUST:
        before, after = (aggregate(method, s, **facts).adapter for s in (states, hostile))
        for key in states[0]:
            honest = factor(states[:5], key)
            spread = np.ptp(factor(states, key), axis=0)
            moved = np.abs(after[key].numpy() - before[key].numpy())
            if method == "separate":
                assert np.median(moved / spread) > 1e4
            else:
                assert (moved <= spread).all()
                assert (after[key].numpy() >= honest.min(0).astype(np.float32)).all()
                assert (after[key].numpy() <= honest.max(0).astype(np.float32)).all()
                assert moved.max() > 0


def test_a_robust_aggregate_of_a_layer_is_over_those_that_have_it() -> None:
    states = [adapter(seed) for seed in range(3)]
    states[1] = {k: t for k, t in states[1].items() if k.startswith("x.")}
    for method in ROBUST:
        result = aggregate(method, states).adapter
        for key in ("y.lora_A.weight", "y.lora_B.weight"):
            expected = (states[0][key] + states[2][key]) / 2
            torch.testing.assert_close(result[key], expected)


# The way down ---------------------------------------------------------------------------------


def test_an_adapter_that_fits_goes_down_bit_by_bit() -> None:
    state = adapter(0)
    fitted = fit_rank(state, scaling=2.0, rank=2, target_scaling=2.0)
    assert all(torch.equal(fitted[k], t) for k, t in state.items())


def test_a_smaller_rank_gets_the_nearest_update() -> None:
    state = adapter(0, rank=3)
    fitted = fit_rank(state, scaling=2.0, rank=1, target_scaling=0.5)
    for layer in LAYERS:
        left, values, right = torch.linalg.svd(dense(state, layer, 2.0), full_matrices=False)
        best = values[0] * left[:, :1] @ right[:1]
        torch.testing.assert_close(dense(fitted, layer, 0.5), best, rtol=0, atol=1e-5)
        assert fitted[f"{layer}.lora_A.weight"].shape == (1, LAYERS[layer][1])
        assert fitted[f"{layer}.lora_B.weight"].dtype == torch.float32


@pytest.mark.parametrize(("rank", "target_scaling"), [(3, 2.0), (2, 0.5), (4, 8.0)])
def test_a_larger_rank_or_another_scale_gets_the_same_update(
    rank: int, target_scaling: float
) -> None:
    state = adapter(0)
    fitted = fit_rank(state, scaling=2.0, rank=rank, target_scaling=target_scaling)
    for layer in LAYERS:
        torch.testing.assert_close(
            dense(fitted, layer, target_scaling), dense(state, layer, 2.0), rtol=0, atol=1e-5
        )
        assert fitted[f"{layer}.lora_A.weight"].shape[0] == rank
