"""The two steps of a Gaussian mechanism on named tensors: clipping and noise."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["clip_to_norm", "gaussian_noise"]


def clip_to_norm(tensors: Mapping[str, Tensor], bound: float) -> dict[str, Tensor]:
    """Scale tensors so that their joint Euclidean norm is at most a bound.

    x min(1, bound / ||x||_2), where x is all tensors as one vector, as in DP-FedAvg (arXiv
    1710.06963, Algorithm 1, "flat clipping").

    Args:
        tensors: Finite tensors of any shapes.
        bound: The bound, positive.

    Returns:
        float64 tensors on the CPU, since float32 would miss the bound by rounding.

    Example:
        >>> clipped = clip_to_norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, 1.0)
        >>> [round(float(t), 3) for t in clipped.values()]
        [0.6, 0.8]
    """
    exact = {name: tensor.detach().cpu().double() for name, tensor in tensors.items()}
    norm = float(torch.nn.utils.get_total_norm(exact.values()))
    if norm <= bound:
        return exact
    return {name: tensor * (bound / norm) for name, tensor in exact.items()}


def gaussian_noise(
    like: Mapping[str, Tensor], std: float, *, seed: int | None = None
) -> dict[str, Tensor]:
    """Draw independent Gaussian noise for every value.

    Args:
        like: Tensors with the names and shapes.
        std: Standard deviation.
        seed: Seed of torch's generator, which makes the noise a function of it. ``None`` draws
            every value from the operating system's entropy, which nobody can repeat.

    Returns:
        float64 tensors on the CPU.

    Example:
        >>> noise = gaussian_noise({"a": torch.zeros(2, 3)}, 0.5, seed=1)
        >>> noise["a"].shape, noise["a"].dtype
        (torch.Size([2, 3]), torch.float64)
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    noise: dict[str, Tensor] = {}
    for name in sorted(like):  # the order in which a mapping was built must not matter
        shape = like[name].shape
        if generator is None:
            noise[name] = std * _normal_from_entropy(shape)
        else:
            noise[name] = std * torch.randn(shape, generator=generator, dtype=torch.float64)
    return noise


def _normal_from_entropy(shape: torch.Size) -> Tensor:
    """Return standard normal values, each the quantile of 53 bits of entropy."""
    count = shape.numel()
    if not count:
        return torch.zeros(shape, dtype=torch.float64)
    words = torch.frombuffer(bytearray(secrets.token_bytes(8 * count)), dtype=torch.int64)
    bits = words.bitwise_and(2**53 - 1).double()
    # The middle of each of the 2^53 steps: never 0 or 1, whose quantiles are infinite.
    normal: Tensor = torch.special.ndtri((bits + 0.5) / 2**53)
    return normal.reshape(shape)
