"""Clipping and noise against their definitions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mlecs_lightning.functional import clip_to_norm, gaussian_noise

DRAWS = 200_000


def joined(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


finite = st.floats(-1e4, 1e4, allow_subnormal=False, width=32)


@given(
    a=st.lists(finite, min_size=1, max_size=5),
    b=st.lists(finite, min_size=1, max_size=5),
    bound=st.floats(1e-3, 1e3),
)
def test_clipping_is_the_projection_on_a_ball(a: list[float], b: list[float], bound: float) -> None:
    tensors = {"a": torch.tensor(a), "b": torch.tensor([b])}
    clipped = clip_to_norm(tensors, bound)
    before, after = joined(tensors).double(), joined(clipped)
    norm = math.sqrt(math.fsum(float(x) ** 2 for x in before))
    assert {k: t.shape for k, t in clipped.items()} == {k: t.shape for k, t in tensors.items()}
    if norm <= bound * (1 - 1e-12):
        assert torch.equal(after, before)
    else:
        torch.testing.assert_close(after, before * min(1.0, bound / norm), rtol=1e-12, atol=0)
        assert math.sqrt(math.fsum(float(x) ** 2 for x in after)) <= bound * (1 + 1e-12)


def test_the_norm_is_that_of_all_tensors_together() -> None:
    """Clipped one by one, two tensors of norm 1 would have a norm of 1.41 together."""
    clipped = clip_to_norm({"a": torch.full((4,), 2.0), "b": torch.full((1, 9), -4.0)}, 1.0)
    assert float(joined(clipped).norm()) == pytest.approx(1.0, rel=1e-12)
    assert float(clipped["b"][0, 0] / clipped["a"][0]) == pytest.approx(-2.0, rel=1e-12)


@pytest.mark.parametrize("seed", [5, None])
def test_moments_and_tails_of_the_noise(seed: int | None) -> None:
    """Bounds of ten standard errors each, so a right generator fails in none of 1e20 runs."""
    std = 0.3
    noise = gaussian_noise(
        {"a": torch.zeros(DRAWS // 2), "b": torch.zeros(2, DRAWS // 4)}, std, seed=seed
    )
    z = joined(noise) / std
    assert z.dtype == torch.float64
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = abs(float((z**power).mean()) - expected)
        assert error < 10 * math.sqrt(variance / DRAWS), power
    for bound, share in ((1.0, 0.317311), (2.0, 0.045500), (3.0, 0.002700)):
        beyond = float((z.abs() > bound).double().mean())
        assert abs(beyond - share) < 10 * math.sqrt(share / DRAWS), bound
    halves = noise["a"], noise["b"].flatten()
    products = halves[0] * halves[1] / std**2
    assert abs(float(products.mean())) < 10 / math.sqrt(DRAWS / 2)  # independent of each other
    assert abs(float((z[1:] * z[:-1]).mean())) < 10 / math.sqrt(DRAWS)


def test_seeded_noise_is_a_function_of_seed_and_shapes_alone() -> None:
    like = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    noise = gaussian_noise(like, 1.0, seed=7)
    again = gaussian_noise(dict(reversed(like.items())), 1.0, seed=7)
    assert all(torch.equal(noise[name], again[name]) for name in like)
    assert not torch.equal(noise["a"], gaussian_noise(like, 1.0, seed=8)["a"])
    state = torch.get_rng_state()
    gaussian_noise(like, 1.0, seed=7)
    assert torch.equal(torch.get_rng_state(), state)  # training draws what it always drew


def test_noise_from_entropy_repeats_nothing() -> None:
    torch.manual_seed(0)
    one = gaussian_noise({"a": torch.zeros(8), "none": torch.zeros(0, 3)}, 1.0)
    torch.manual_seed(0)
    other = gaussian_noise({"a": torch.zeros(8)}, 1.0)
    assert one["none"].shape == (0, 3)
    assert not set(one["a"].tolist()) & set(other["a"].tolist())
