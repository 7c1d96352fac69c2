"""Weighted averages of named tensors, and the weights that ML-ECS gives its clients."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def normalise_weights(weights: Sequence[float], count: int) -> list[float]:
    """Weights divided by their sum.

    Args:
        weights: One weight a client, finite and not negative.
        count: Number of clients that there must be.

    Returns:
        The same weights with sum 1.

    Raises:
        ValueError: If there are no clients or not ``count`` weights, one is negative or not
            finite, or their sum is not positive.

    Example:
        >>> normalise_weights([1, 3], 2)
        [0.25, 0.75]
    """
    if count == 0:
        raise ValueError("need at least one client")
    if len(weights) != count:
        raise ValueError(f"need one weight a client: got {len(weights)} weights for {count}")
    for index, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weights[{index}] must be finite and not negative, got {weight}")
    total = math.fsum(weights)
    if total <= 0:
        raise ValueError(f"the sum of the weights must be positive, got {total}")
    return [weight / total for weight in weights]


def weighted_mean(
    states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
) -> dict[str, Tensor]:
    """Average named tensors key by key.

    Each key has its own weight total: ``sum_j w_j x_j / sum_j w_j`` over those clients j that have
    the key, so one that a client lacks is neither lost nor diluted. Source: ML-ECS, the MMA step
    (arXiv 2602.14107); the totals by key are our choice.

    Args:
        states: Named tensors of each client.
        weights: Weight of each client, not negative; only their ratios matter.

    Returns:
        Every key of any client, in the order of first appearance, summed in float64 and returned
        in the clients' dtype (the wider one where they differ; whole numbers are rounded).

    Raises:
        ValueError: If weights are invalid (see :func:`normalise_weights`), the shapes of a key
            differ, or no client with a positive weight has some key.

    Example:
        >>> states = [{"a": torch.tensor([0.0])}, {"a": torch.tensor([4.0]), "b": torch.ones(1)}]
        >>> weighted_mean(states, [3, 1])
        {'a': tensor([1.]), 'b': tensor([1.])}
    """
    shares = normalise_weights(weights, len(states))
    keys = dict.fromkeys(key for state in states for key in state)
    return {
        key: _mean_of_key(
            key, [(state[key], w) for state, w in zip(states, shares, strict=True) if key in state]
        )
        for key in keys
    }


def modality_aware_weights(
    modality_counts: Sequence[int], sample_counts: Sequence[int] | None = None
) -> list[float]:
    """Weights of modality-aware aggregation (MMA): ``w_j`` proportional to ``|M_j|``.

    Source: ML-ECS (arXiv 2602.14107). Multiplying by the number of samples n_j is our choice.

    Args:
        modality_counts: Number of modalities that each client has, at least 1.
        sample_counts: Number of samples that each client trained on; left out of the weights if
            None.

    Returns:
        One weight a client, with sum 1.

    Raises:
        ValueError: If a client has no modality, lengths differ, a number of samples is negative,
            or all of them are zero.

    Example:
        >>> modality_aware_weights([1, 3])
        [0.25, 0.75]
        >>> modality_aware_weights([1, 3], [30, 10])
        [0.5, 0.5]
    """
    for index, modalities in enumerate(modality_counts):
        if modalities < 1:
            raise ValueError(f"modality_counts[{index}] must be at least 1, got {modalities}")
    samples = [1] * len(modality_counts) if sample_counts is None else sample_counts
    if len(samples) != len(modality_counts):
        raise ValueError(
            f"need one sample count a client: got {len(samples)} for {len(modality_counts)}"
        )
    products = [m * n for m, n in zip(modality_counts, samples, strict=True)]
    return normalise_weights(products, len(products))


def _mean_of_key(key: str, terms: Sequence[tuple[Tensor, float]]) -> Tensor:
    """Average one key over the clients that have it, given as (tensor, weight)."""
    first = terms[0][0]
    shapes = [tuple(tensor.shape) for tensor, _ in terms]
    if len(set(shapes)) > 1:
        raise ValueError(f"key {key!r} has different shapes among the clients: {shapes}")
    total = math.fsum(weight for _, weight in terms)
    if total <= 0:
        raise ValueError(f"every client that has key {key!r} has a weight of zero")
    # float64, because a sum over many clients in bf16 or float32 loses the small ones.
    mean = torch.zeros_like(first, dtype=torch.float64)
    dtype = first.dtype
    for tensor, weight in terms:
        mean += tensor.to(torch.float64) * (weight / total)
        dtype = torch.promote_types(dtype, tensor.dtype)
    return (mean if dtype.is_floating_point else mean.round()).to(dtype)
