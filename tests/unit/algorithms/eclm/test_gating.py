"""Gates by hand on a toy: three modules in two layers."""

import math

import pytest
import torch

from mlecs_lightning.algorithms.eclm.gating import load_balance, top_k_gates

LOGITS = torch.log(torch.tensor([[[1.0, 2.0, 5.0], [6.0, 1.0, 1.0]]]))


@pytest.mark.parametrize(
    ("active", "expected"),
    [
        (1, [[0, 0, 1], [1, 0, 0]]),
        (2, [[0, 1, 1], [1, 1, 0]]),  # of two alike the first
        (3, [[1, 1, 1], [1, 1, 1]]),
    ],
)
def test_the_largest_gates_are_one_and_the_others_zero(
    active: int, expected: list[list[int]]
) -> None:
    gates, p = top_k_gates(LOGITS, torch.tensor([active]))
    assert gates.tolist() == [expected]
    torch.testing.assert_close(p, torch.tensor([[[0.125, 0.25, 0.625], [0.75, 0.125, 0.125]]]))


def test_every_sample_has_its_own_number_of_modules() -> None:
    gates, _ = top_k_gates(LOGITS.repeat(2, 1, 1), torch.tensor([1, 3]))
    assert gates.sum(-1).tolist() == [[1, 1], [3, 3]]


def test_weighted_gates_have_a_mean_of_one_and_the_gradient_of_what_they_are() -> None:
    logits = LOGITS.clone().requires_grad_()
    gates, p = top_k_gates(logits, torch.tensor([2]), weighted=True)
    expected = [[[0.0, 4 / 7, 10 / 7], [12 / 7, 2 / 7, 0.0]]]
    torch.testing.assert_close(gates, torch.tensor(expected))
    # d/dp_2 of 2 p_2 / (p_1 + p_2); the softmax of the two alone has the same ratio.
    gates[0, 0, 2].backward()
    one, other = 2 / 7, 5 / 7
    gradient = torch.tensor([0.0, -2 * one * other, 2 * one * other])
    torch.testing.assert_close(logits.grad[0, 0], gradient)  # type: ignore[index]
    assert p.sum(dim=-1).allclose(torch.ones(1, 2))


def test_the_gradient_is_that_of_the_softmax_of_what_was_chosen() -> None:
    """d(p_2)/d(logits) = p_2 (e_2 - p), by hand."""
    logits = LOGITS.clone().requires_grad_()
    gates, _ = top_k_gates(logits, torch.tensor([1]))
    (gates * torch.tensor([7.0, 7.0, 3.0]))[0, 0].sum().backward()
    expected = 3.0 * 0.625 * (torch.tensor([0.0, 0.0, 1.0]) - torch.tensor([0.125, 0.25, 0.625]))
    torch.testing.assert_close(logits.grad[0, 0], expected)
    assert logits.grad[0, 1].tolist() == [0, 0, 0]


def test_noise_lets_the_second_best_be_tried_as_often_as_it_should() -> None:
    """Two modules whose logits differ by 1, noise of deviation 1: P = Phi(-1 / sqrt 2)."""
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0]).expand(20000, 1, 2)
    gates, _ = top_k_gates(logits, torch.ones(20000), noise=1.0)
    expected = 0.5 * math.erfc(0.5)
    assert gates[:, 0, 0].mean().item() == pytest.approx(expected, abs=0.01)


def test_balance_by_hand() -> None:
    p = torch.tensor([[[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [1.0, 0.0]]])
    # Layer 0: importance 1, 1. Layer 1: 2, 0: mean 1, variance 1. Mean over layers.
    assert load_balance(p).item() == 0.5


def test_balance_pushes_towards_the_module_that_is_used_less() -> None:
    p = torch.tensor([[[0.8, 0.2]]], requires_grad=True)
    load_balance(p).backward()
    assert p.grad[0, 0, 0] > 0 > p.grad[0, 0, 1]
