import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlecs_lightning.functional import distillation_loss, hidden_distance

ALL = torch.tensor([[True]])


def test_divergence_by_hand() -> None:
    """Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2."""
    teacher = torch.tensor([[[math.log(3.0), 0.0]]])
    student = torch.zeros(1, 1, 2)
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(distillation_loss(student, teacher, mask=ALL)) == pytest.approx(by_hand)
    # At T = 1/2 the teacher is (9/10, 1/10), and the loss a quarter.
    by_hand = 0.25 * (0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert float(distillation_loss(student, teacher, mask=ALL, temperature=0.5)) == pytest.approx(
        by_hand
    )


def test_only_positions_that_count_count_and_each_alike() -> None:
    teacher = torch.tensor([[[math.log(3.0), 0.0], [9.0, -9.0]], [[0.0, 0.0], [0.0, 0.0]]])
    student = torch.zeros(2, 2, 2)
    mask = torch.tensor([[True, False], [True, True]])
    one = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(distillation_loss(student, teacher, mask=mask)) == pytest.approx(one / 3)
    nobody = torch.zeros(2, 2, dtype=torch.bool)
    assert float(distillation_loss(student, teacher, mask=nobody)) == 0


def test_the_gradient_is_the_student_s_alone_and_of_one_size() -> None:
    """dL/dlogit = T (softmax(s / T) - softmax(t / T)): at large T it tends to (s - t) / V."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 1, 5, generator=generator) for _ in range(2))
    for temperature in (1.0, 4.0):
        s, t = student.clone().requires_grad_(), teacher.clone().requires_grad_()
        distillation_loss(s, t, mask=ALL, temperature=temperature).backward()
        assert t.grad is None
        expected = temperature * (
            (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
        )
        assert s.grad is not None
        torch.testing.assert_close(s.grad, expected)


@given(st.lists(st.floats(-30, 30), min_size=3, max_size=3), st.floats(0.1, 20))
def test_no_other_answer_is_as_good_as_the_teacher_s(logits: list[float], shift: float) -> None:
    teacher = torch.tensor([[logits]])
    assert float(distillation_loss(teacher + 5, teacher, mask=ALL)) == pytest.approx(0, abs=1e-5)
    other = teacher + torch.tensor([shift, 0.0, 0.0])
    assert float(distillation_loss(other, teacher, mask=ALL)) >= -1e-6


def test_extreme_logits_stay_finite() -> None:
    teacher = torch.tensor([[[1e4, -1e4]]])
    assert torch.isfinite(distillation_loss(-teacher, teacher, mask=ALL))
    half = distillation_loss(teacher.bfloat16(), -teacher.bfloat16(), mask=ALL)
    assert half.dtype == torch.float32


def test_shapes_and_temperature_are_checked() -> None:
    with pytest.raises(ValueError, match=r"student \(1, 1, 3\) and teacher \(1, 1, 2\)"):
        distillation_loss(torch.zeros(1, 1, 3), torch.zeros(1, 1, 2), mask=ALL)
    with pytest.raises(ValueError, match="mask"):
        distillation_loss(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), mask=ALL)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        distillation_loss(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), mask=ALL, temperature=0)


def test_hidden_states_by_their_angle() -> None:
    student = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    teacher = torch.tensor([[5.0, 0.0], [1.0, 0.0], [0.0, -1.0]])
    expected = ((1 - 1) + (1 - math.sqrt(0.5)) + (1 + 1)) / 3
    assert float(hidden_distance(student, teacher)) == pytest.approx(expected, rel=1e-5)
    student.requires_grad_()
    teacher.requires_grad_()
    hidden_distance(student, teacher).backward()
    assert teacher.grad is None
