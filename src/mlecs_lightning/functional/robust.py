"""Robust means of named tensors, which a minority of malicious clients cannot move far."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor


def coordinate_median(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Coordinate-wise median of named tensors.

    All clients have the same weight. If fewer than half of the clients with a key are malicious,
    every coordinate is between the smallest and the largest value of the honest ones. Source: Yin
    et al. 2018 (arXiv 1803.01498, definition 1). With an even number of clients it is the mean of
    the two middle values, as in ``numpy.median``. The median of a key is over the clients that have
    it (our choice).

    Args:
        states: Named tensors of each client, with the same shape for a key. Values should be
            finite; NaN counts as larger than all numbers.

    Returns:
        Every key of any client, in the order of first appearance, with its shape and the clients'
        dtype (the widest if they differ; integers are rounded). The result does not depend on the
        order of the clients, not even in the last bit.

    Raises:
        ValueError: If there are no clients, or the shapes of a key differ.

    Example:
        >>> states = [{"a": torch.tensor([v, -v])} for v in (1.0, 3.0, 1e6)]
        >>> coordinate_median(states)
        {'a': tensor([ 3., -3.])}
    """
    return _by_key(states, _middle)


def trimmed_mean(states: Sequence[Mapping[str, Tensor]], *, trim: float) -> dict[str, Tensor]:
    """Coordinate-wise trimmed mean of named tensors.

    Of the n values of a coordinate, the ``floor(trim n)`` smallest and equally many largest are
    removed, and the others averaged with equal weights. If at most ``floor(trim n)`` clients are
    malicious, the result is between the smallest and the largest value of the honest ones. With few
    clients and a small ``trim``, nothing is removed. Source: Yin et al. 2018 (arXiv 1803.01498,
    definition 2); rounding down as in ``scipy.stats.trim_mean``. The mean of a key is over the
    clients that have it (our choice).

    Args:
        states: Named tensors of each client, with the same shape for a key. Values should be
            finite; NaN counts as larger than all numbers.
        trim: Fraction of the clients to remove at each end, in [0, 0.5), so that at least one value
            is left.

    Returns:
        As :func:`coordinate_median`; sums are in float64.

    Raises:
        ValueError: If there are no clients, the shapes of a key differ, or ``trim`` is outside its
            range.

    Example:
        >>> states = [{"a": torch.tensor([v])} for v in (-1e6, 1.0, 2.0, 6.0, 1e6)]
        >>> trimmed_mean(states, trim=0.2)
        {'a': tensor([3.])}
    """
    if not 0 <= trim < 0.5:
        raise ValueError(f"trim must lie in [0, 0.5), got {trim}")

    def inner_mean(ordered: Tensor) -> Tensor:
        cut = int(trim * len(ordered))
        return ordered[cut : len(ordered) - cut].mean(dim=0)

    return _by_key(states, inner_mean)


def _middle(ordered: Tensor) -> Tensor:
    count = len(ordered)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def _by_key(
    states: Sequence[Mapping[str, Tensor]], reduction: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Apply a reduction to each key: from (n, *shape) float64, sorted by value, to its shape."""
    if not states:
        raise ValueError("need at least one client")
    tensors_of: dict[str, list[Tensor]] = {}
    for state in states:
        for key, tensor in state.items():
            tensors_of.setdefault(key, []).append(tensor)
    return {key: _reduced(key, tensors, reduction) for key, tensors in tensors_of.items()}


def _reduced(key: str, tensors: Sequence[Tensor], reduction: Callable[[Tensor], Tensor]) -> Tensor:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1:
        raise ValueError(f"key {key!r} has different shapes among the clients: {shapes}")
    ordered = torch.stack([tensor.double() for tensor in tensors]).sort(dim=0).values
    # Sorting takes 0 and -0 for equal and keeps the order of the clients; adding 0 makes both 0.
    value = reduction(ordered) + 0.0
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return (value if dtype.is_floating_point else value.round()).to(dtype)
