import math

import pytest
import torch

from mlecs_lightning.wire.messages import Message, Scalar, ScalarField, TensorField, adapter_fields


def test_component_is_the_part_before_the_first_slash() -> None:
    tensors = {"adapter/a/b": torch.zeros(1), "adapters/a": torch.ones(1), "fused/a": torch.ones(2)}
    assert Message(tensors).component("adapter") == {"a/b": torch.zeros(1)}
    assert list(Message(tensors).component("fused")) == ["a"]


@pytest.mark.parametrize(
    ("shape", "tensor", "fault"),
    [
        ((2, 3), torch.zeros(2, 3), None),
        ((None, 3), torch.zeros(7, 3), None),
        ((None, 3), torch.zeros(0, 3), None),
        ((2, 3), torch.zeros(3, 2), "shape (3, 2), declared (2, 3)"),
        ((None, 3), torch.zeros(7, 4), "shape (7, 4), declared (None, 3)"),
        ((None, 3), torch.zeros(3), "shape (3,), declared (None, 3)"),
        ((2,), torch.zeros(2, 1), "shape (2, 1), declared (2,)"),
        ((), torch.zeros(()), None),
        ((2,), torch.zeros(2).double(), "dtype torch.float64, declared torch.float32"),
        ((2,), torch.zeros(2).long(), "dtype torch.int64, declared torch.float32"),
    ],
)
def test_field_says_what_is_wrong(
    shape: tuple[int | None, ...], tensor: torch.Tensor, fault: str | None
) -> None:
    assert TensorField(shape).fault(tensor) == fault


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        (ScalarField(int), 3, None),
        (ScalarField(int), 3.0, "3.0, declared int"),
        (ScalarField(int), True, "True, declared int"),
        (ScalarField(int), "3", "'3', declared int"),
        (ScalarField(float), 0.5, None),
        (ScalarField(float), 1, "1, declared float"),
        (ScalarField(float), math.nan, "nan, declared finite"),
        (ScalarField(float), -math.inf, "-inf, declared finite"),
        (ScalarField(str), "x", None),
        (ScalarField(str), ("x",), "('x',), declared str"),
        (ScalarField(tuple), ("x", "y"), None),
        (ScalarField(tuple), (), None),
        (ScalarField(tuple), "x", "'x', declared tuple"),
        (ScalarField(tuple), ["x"], "['x'], declared tuple"),
        (ScalarField(tuple), ("x", 1), "('x', 1), declared tuple of strings"),
        (ScalarField(int, low=1, high=9), 1, None),
        (ScalarField(int, low=1, high=9), 9, None),
        (ScalarField(int, low=1, high=9), 0, "0, declared at least 1"),
        (ScalarField(int, low=1, high=9), 10, "10, declared at most 9"),
        (ScalarField(float, low=0.5), 0.25, "0.25, declared at least 0.5"),
        (ScalarField(float, low=0.5), math.nan, "nan, declared finite"),
        (ScalarField(tuple, equal=("a", "b")), ("a", "b"), None),
        (ScalarField(tuple, equal=("a", "b")), ("b", "a"), "('b', 'a'), declared ('a', 'b')"),
        (ScalarField(tuple, equal=("a",)), ("a", "a"), "('a', 'a'), declared ('a',)"),
        (ScalarField(tuple, equal=()), ("a",), "('a',), declared ()"),
        (ScalarField(int, equal=0), 1, "1, declared 0"),
        (ScalarField(int, equal=1), True, "True, declared int"),
    ],
)
def test_field_says_what_is_wrong_with_a_scalar(
    field: ScalarField, value: Scalar, fault: str | None
) -> None:
    assert field.fault(value) == fault


@pytest.mark.parametrize("value", ["x" * 10**6, tuple("x" * 10**5), 10**4000, ("x" * 10**6,)])
def test_a_fault_stays_short_whatever_was_sent(value: Scalar) -> None:
    fault = ScalarField(float).fault(value)
    assert fault is not None
    assert len(fault) < 100


def test_a_number_too_large_for_a_float_is_only_too_large() -> None:
    fault = ScalarField(int, low=1, high=2**31 - 1).fault(10**400)
    assert fault is not None
    assert fault.endswith("declared at most 2147483647")


def test_adapter_fields_declare_shape_and_dtype_of_every_tensor() -> None:
    adapter = {"x.lora_A.weight": torch.zeros(2, 5), "x.lora_B.weight": torch.zeros(3, 2).half()}
    assert adapter_fields(adapter) == {
        "adapter/x.lora_A.weight": TensorField((2, 5), torch.float32),
        "adapter/x.lora_B.weight": TensorField((3, 2), torch.float16),
    }
