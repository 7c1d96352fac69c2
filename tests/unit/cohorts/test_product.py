"""Rows times the weights of their clients: values, gradients, and how these lie in memory."""

import pytest
import torch

from mlecs_lightning.cohorts.product import product

DRAWN = torch.Generator().manual_seed(0)
ROWS = torch.randn(2, 5, 3, generator=DRAWN, dtype=torch.float64)
WEIGHT = torch.randn(2, 4, 3, generator=DRAWN, dtype=torch.float64)
STARTS = {
    "nothing": None,
    "rows": torch.randn(2, 5, 4, generator=DRAWN, dtype=torch.float64),
    "one for each client": torch.randn(2, 4, generator=DRAWN, dtype=torch.float64),
}


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("start", STARTS)
def test_values_and_gradients_are_those_of_the_plain_product(start: str, factor: float) -> None:
    given = STARTS[start]
    tensors = [t.clone().requires_grad_() for t in (ROWS, WEIGHT, given) if t is not None]

    def made(*tensors: torch.Tensor) -> torch.Tensor:
        return product(*tensors, factor=factor)

    wide = 0.0 if given is None else given if given.dim() == 3 else given.unsqueeze(1)
    assert torch.allclose(made(*tensors), wide + factor * ROWS @ WEIGHT.mT)
    assert torch.autograd.gradcheck(made, tensors)


def test_a_gradient_lies_as_its_weight_does() -> None:
    weight = WEIGHT.clone().requires_grad_()
    (made,) = torch.autograd.grad(product(ROWS, weight).sum(), weight)
    assert made.stride() == weight.stride()
    (copied,) = torch.autograd.grad(torch.bmm(ROWS, weight.mT).sum(), weight)
    assert copied.stride() != weight.stride()


def test_what_needs_no_gradient_gets_none() -> None:
    rows = ROWS.clone().requires_grad_()
    product(rows, WEIGHT, STARTS["rows"]).sum().backward()
    assert torch.equal(rows.grad, torch.ones(2, 5, 4).double() @ WEIGHT)


def test_mixed_precision_takes_the_type_of_the_autocast() -> None:
    rows, weight = ROWS.float().requires_grad_(), WEIGHT.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        made = product(rows, weight, torch.zeros(2, 4), factor=0.5)
        expected = 0.5 * torch.bmm(rows, weight.mT)
    assert made.dtype == torch.bfloat16
    made.float().sum().backward()
    assert rows.grad is not None
    assert weight.grad is not None
    assert rows.grad.dtype == weight.grad.dtype == torch.float32
    # bfloat16 has eight bits of mantissa, and there are three terms of size one.
    assert torch.allclose(made.float(), expected.float(), atol=2**-5)
