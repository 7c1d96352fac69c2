"""Messages between a device and the cloud, and the schemas that declare them."""

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
"""Component of the figures that a client reports about its training; see `reports`."""


@dataclass(frozen=True)
class Message:
    """Named tensors and scalars.

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
        shape: Expected shape; ``None`` stands for any size of a dimension.
        dtype: Expected dtype.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype = torch.float32

    def fault(self, tensor: Tensor) -> str | None:
        """Return what is wrong with a tensor, or ``None``."""
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
        kind: int, float, str, or tuple (of strings). A bool does not count as an int, nor an int
            as a float.
        low: Minimum; ``None`` for no limit.
        high: Maximum; ``None`` for no limit.
        equal: The only value allowed; ``None`` allows any.
    """

    kind: type[Scalar]
    low: float | None = None
    high: float | None = None
    equal: Scalar | None = None

    def fault(self, value: Scalar) -> str | None:
        """Return what is wrong with a scalar, or ``None``."""
        declared = self._broken(value)
        # Shortened, since the value comes from the sender and may be very long.
        return f"{reprlib.repr(value)}, declared {declared}" if declared else None

    def _broken(self, value: Scalar) -> str | None:
        """Return the first part of the declaration that a value violates."""
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
    """Everything that a message in one direction may hold.

    Attributes:
        tensors: The required tensors.
        scalars: The required scalars.
        optional: Tensors that may be missing.
    """

    tensors: Mapping[str, TensorField] = field(default_factory=dict)
    scalars: Mapping[str, ScalarField] = field(default_factory=dict)
    optional: Mapping[str, TensorField] = field(default_factory=dict)


def component_of(name: str) -> str:
    """Return the component under which the ledger counts a tensor."""
    return name.partition("/")[0]


def adapter_fields(adapter: Mapping[str, Tensor]) -> dict[str, TensorField]:
    """Declare tensors of the given adapter's shapes as component ``adapter``."""
    return {f"adapter/{k}": TensorField(tuple(t.shape), t.dtype) for k, t in adapter.items()}
