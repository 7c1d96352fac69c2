"""Averages of named tensors that a minority of hostile clients cannot move far."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor


def coordinate_median(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Median of named tensors, key by key and coordinate by coordinate.

    Every client counts alike. As long as fewer than half of those that have a key are hostile, each
    coordinate lies between the smallest and the largest value of the honest ones. Source: Yin et
    al. 2018 (arXiv 1803.01498, definition 1). With an even number of clients the mean of the two
    middle values, as in ``numpy.median``; a key that some clients lack is the median over those
    that have it (our choice).

    Args:
        states: Named tensors of each client, of one shape a key. Values should be finite; NaN
            counts as larger than all numbers.

    Returns:
        Every key of any client, in the order of first appearance, in its shape and in the clients'
        dtype (the wider one where they differ; whole numbers are rounded). The order of the
        clients does not show, not even in the last bit.

    Raises:
        ValueError: If there are no clients, or the shapes of a key differ.

    Example:
        >>> states = [{"a": torch.tensor([v, -v])} for v in (1.0, 3.0, 1e6)]
        >>> coordinate_median(states)
        {'a': tensor([ 3., -3.])}
    """
    return _by_key(states, _middle)


def trimmed_mean(states: Sequence[Mapping[str, Tensor]], *, trim: float) -> dict[str, Tensor]:
    """Mean of named tensors without the extremes, key by key and coordinate by coordinate.

    Of the n values of a coordinate the ``floor(trim n)`` smallest and as many of the largest are
    cut off; the mean of the rest, each counting alike, lies between the smallest and the largest
    value of the honest clients as long as no more than ``floor(trim n)`` are hostile. Few clients
    and a small ``trim`` cut off nothing. Source: Yin et al. 2018 (arXiv 1803.01498, definition 2);
    rounding down as in ``scipy.stats.trim_mean``. A key that some clients lack is averaged over
    those that have it (our choice).

    Args:
        states: Named tensors of each client, of one shape a key. Values should be finite; NaN
            counts as larger than all numbers.
        trim: Share of the clients to cut off at each end, in [0, 0.5), so that at least one value
            stays.

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
    """Reduce every key from (n, *shape) float64, sorted along the clients, to its shape."""
    if not states:
        raise ValueError("need at least one client")
    result: dict[str, Tensor] = {}
    for key in dict.fromkeys(key for state in states for key in state):
        tensors = [state[key] for state in states if key in state]
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if len(set(shapes)) > 1:
            raise ValueError(f"key {key!r} has different shapes among the clients: {shapes}")
        ordered = torch.stack([tensor.double() for tensor in tensors]).sort(dim=0).values
        # 0 and -0 are equal to a sort, so which comes first depends on the order of the clients;
        # adding 0 makes both 0.
        value = reduction(ordered) + 0.0
        dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
        result[key] = (value if dtype.is_floating_point else value.round()).to(dtype)
    return result
