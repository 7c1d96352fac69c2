import pytest
import torch

from mlecs_lightning.federated.messages import Message, TensorField, adapter_fields


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


def test_adapter_fields_declare_shape_and_dtype_of_every_tensor() -> None:
    adapter = {"x.lora_A.weight": torch.zeros(2, 5), "x.lora_B.weight": torch.zeros(3, 2).half()}
    assert adapter_fields(adapter) == {
        "adapter/x.lora_A.weight": TensorField((2, 5), torch.float32),
        "adapter/x.lora_B.weight": TensorField((3, 2), torch.float16),
    }
