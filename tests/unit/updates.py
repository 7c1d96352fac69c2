"""Updates of LoRA adapters as whole matrices, computed apart from the package."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def dense(adapter: Mapping[str, Tensor], layer: str, scaling: float) -> Tensor:
    """Return scaling B A of a layer, in float64."""
    up, down = adapter[f"{layer}.lora_B.weight"], adapter[f"{layer}.lora_A.weight"]
    return scaling * up.double() @ down.double()


def mean(parts: Iterable[tuple[Tensor, float]]) -> Tensor:
    """Return the weighted mean of some tensors."""
    tensors, weights = zip(*parts, strict=True)
    return sum((t * w for t, w in zip(tensors, weights, strict=True)), torch.zeros(())) / sum(
        weights
    )


def relative_error(found: Iterable[Tensor], exact: Iterable[Tensor]) -> float:
    """Return ||found - exact||_F / ||exact||_F over all layers together."""
    missed = size = 0.0
    for one, other in zip(found, exact, strict=True):
        missed += float((one - other).square().sum())
        size += float(other.square().sum())
    return (missed / size) ** 0.5
