"""What may cross the border between a device and the cloud, and the declaration of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Message", "Scalar", "Schema", "TensorField", "adapter_fields"]

Scalar = int | float | str | tuple[str, ...]


@dataclass(frozen=True)
class Message:
    """Named tensors and scalars, nothing else.

    Attributes:
        tensors: Tensors under ``component/name``; the part before the first slash is the component
            that the ledger counts (``adapter``, ``fused``).
        scalars: Numbers, strings, and tuples of strings (ids, modality names).
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    scalars: Mapping[str, Scalar] = field(default_factory=dict)

    def component(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one component, without its prefix."""
        prefix = f"{name}/"
        return {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}


@dataclass(frozen=True)
class TensorField:
    """The declared form of one tensor.

    Attributes:
        shape: Expected shape; ``None`` leaves a dimension open.
        dtype: Expected dtype.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype = torch.float32

    def fault(self, tensor: Tensor) -> str | None:
        """Say what is wrong with a tensor, ``None`` if nothing is."""
        if tensor.dtype != self.dtype:
            return f"dtype {tensor.dtype}, declared {self.dtype}"
        fits = len(tensor.shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, tensor.shape, strict=True)
        )
        return None if fits else f"shape {tuple(tensor.shape)}, declared {self.shape}"


@dataclass(frozen=True)
class Schema:
    """All that a message of one direction may hold; a message must hold exactly this.

    Attributes:
        tensors: The form of each tensor.
        scalars: The type of each scalar: int, float, str, or tuple (of strings).
    """

    tensors: Mapping[str, TensorField] = field(default_factory=dict)
    scalars: Mapping[str, type] = field(default_factory=dict)


def adapter_fields(adapter: Mapping[str, Tensor]) -> dict[str, TensorField]:
    """Declare the tensors of an adapter like the given one, as component ``adapter``."""
    return {f"adapter/{k}": TensorField(tuple(t.shape), t.dtype) for k, t in adapter.items()}
