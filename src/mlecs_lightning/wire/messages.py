"""What may cross the border between a device and the cloud, and the declaration of it."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = [
    "REPORT",
    "Message",
    "Scalar",
    "ScalarField",
    "Schema",
    "TensorField",
    "adapter_fields",
    "component_of",
]

Scalar = int | float | str | tuple[str, ...]

REPORT = "report"
"""Component of the figures that tell how a client's training went; see `reports`."""


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
class ScalarField:
    """The declared form of one scalar.

    Attributes:
        kind: int, float, str, or tuple (of strings). A bool is no int, an int no float.
        low: Smallest number allowed; ``None`` sets no limit.
        high: Largest number allowed; ``None`` sets no limit.
        equal: The only value allowed; ``None`` allows any.
    """

    kind: type[Scalar]
    low: float | None = None
    high: float | None = None
    equal: Scalar | None = None

    def fault(self, value: Scalar) -> str | None:
        """Say what is wrong with a scalar, ``None`` if nothing is."""
        declared = self._broken(value)
        # Shortened: the value comes from the sender and may be as long as a message.
        return f"{reprlib.repr(value)}, declared {declared}" if declared else None

    def _broken(self, value: Scalar) -> str | None:
        """Return the first part of the declaration that a value does not keep to."""
        if type(value) is not self.kind:
            return self.kind.__name__
        if isinstance(value, tuple) and not all(isinstance(item, str) for item in value):
            return "tuple of strings"
        if self.equal is not None and value != self.equal:
            return repr(self.equal)
        if isinstance(value, float) and not math.isfinite(value):
            return "finite"
        if isinstance(value, int | float):
            if self.low is not None and value < self.low:
                return f"at least {self.low}"
            if self.high is not None and value > self.high:
                return f"at most {self.high}"
        return None


@dataclass(frozen=True)
class Schema:
    """All that a message of one direction may hold.

    Attributes:
        tensors: The form of each tensor; all of them have to be there.
        scalars: The form of each scalar; all of them have to be there.
        optional: The form of tensors that may be left out.
    """

    tensors: Mapping[str, TensorField] = field(default_factory=dict)
    scalars: Mapping[str, ScalarField] = field(default_factory=dict)
    optional: Mapping[str, TensorField] = field(default_factory=dict)


def component_of(name: str) -> str:
    """Return the component that a tensor is counted under."""
    return name.partition("/")[0]


def adapter_fields(adapter: Mapping[str, Tensor]) -> dict[str, TensorField]:
    """Declare the tensors of an adapter like the given one, as component ``adapter``."""
    return {f"adapter/{k}": TensorField(tuple(t.shape), t.dtype) for k, t in adapter.items()}
