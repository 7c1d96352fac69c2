import math

import pytest
import torch

from mlecs_lightning.functional import logit_distillation

MASK = torch.ones(1, 1, dtype=torch.bool)


def logits(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log().view(1, 1, -1)


def test_divergence_of_two_distributions_by_hand() -> None:
    teacher, student = logits(0.5, 0.25, 0.25), logits(0.25, 0.5, 0.25)
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert float(logit_distillation(student, teacher, MASK)) == pytest.approx(expected, rel=1e-5)


def test_temperature_softens_and_scales() -> None:
    teacher, student = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[0.0, 0.0]]])
    p = math.e / (1 + math.e)  # at T = 2
    expected = 4 * (math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p))
    value = logit_distillation(student, teacher, MASK, temperature=2.0)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_mean_is_over_the_masked_positions() -> None:
    teacher, student = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[0, 1] = mask[2, 3] = True
    one, other = (
        logit_distillation(student[i, j].view(1, 1, -1), teacher[i, j].view(1, 1, -1), MASK)
        for i, j in ((0, 1), (2, 3))
    )
    torch.testing.assert_close(logit_distillation(student, teacher, mask), (one + other) / 2)


def test_nothing_to_compare_is_zero_even_beside_infinities() -> None:
    student = torch.full((1, 2, 3), math.inf, requires_grad=True)
    value = logit_distillation(student, torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool))
    assert float(value) == 0.0


def test_gradient_pulls_the_student_and_spares_the_teacher() -> None:
    teacher = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    student = torch.zeros(1, 1, 2, requires_grad=True)
    logit_distillation(student, teacher, MASK).backward()
    assert teacher.grad is None
    assert student.grad is not None
    p = torch.tensor([[[1.0, 0.0]]]).softmax(-1)
    torch.testing.assert_close(student.grad, 0.5 - p)


def test_half_precision_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(2, 3, 50) * 8, torch.randn(2, 3, 50) * 8
    mask = torch.ones(2, 3, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = logit_distillation(student, teacher, mask)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, logit_distillation(student, teacher, mask))


def test_other_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 3\).*\(1, 1, 2\).*vocabulary"):
        logit_distillation(torch.zeros(1, 1, 3), torch.zeros(1, 1, 2), MASK)
    with pytest.raises(ValueError, match="positions"):
        logit_distillation(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), MASK)
