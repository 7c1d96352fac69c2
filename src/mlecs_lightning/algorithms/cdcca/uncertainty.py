"""Measures of a model's uncertainty, and the choice of the most uncertain tokens.

The parts of uncertainty-guided token sampling (UTS, arXiv 2312.16279). The paper's abstract gives
the idea; the exact measures are our choice.
"""

import torch
from torch import Tensor


def predictive_entropy(probabilities: Tensor, mask: Tensor) -> Tensor:
    """Return the entropy of next-token distributions, averaged over each sample's positions.

    Args:
        probabilities: (B, T, V), the mean over dropout passes.
        mask: (B, T) bool, the positions to average over.

    Returns:
        (B,) in nats, in [0, ln V]; zero for a sample without positions.

    Example:
        >>> fair = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]])
        >>> predictive_entropy(fair, torch.tensor([[True, False]]))
        tensor([0.6931])
    """
    return _over_positions(torch.special.entr(probabilities.float()).sum(dim=-1), mask)


def dropout_variance(probabilities: Tensor, mask: Tensor) -> Tensor:
    """Return the variance of next-token distributions over dropout passes.

    The population variance of each probability over the passes, summed over the vocabulary and
    averaged over each sample's positions: the expected squared Euclidean distance of a pass from
    the mean.

    Args:
        probabilities: (S, B, T, V) of S passes.
        mask: (B, T) bool, the positions to average over.

    Returns:
        (B,) in [0, 1].

    Example:
        >>> passes = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]]])
        >>> dropout_variance(passes, torch.tensor([[True]]))
        tensor([0.5000])
    """
    return _over_positions(probabilities.float().var(dim=0, correction=0).sum(dim=-1), mask)


def _over_positions(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def most_uncertain(scores: Tensor, present: Tensor, fraction: float) -> Tensor:
    """Return the positions of the tokens with the highest scores.

    Args:
        scores: (N, K) uncertainty of K tokens of N samples.
        present: (N, K) bool; absent tokens are never chosen.
        fraction: Share rho in (0, 1] of the present tokens to choose; rounded, at least one.

    Returns:
        (M, 2) int64 rows and columns, in ascending order; ties go to the first ones.

    Raises:
        ValueError: If shapes differ or ``fraction`` is out of range.

    Example:
        >>> scores = torch.tensor([[0.1, 0.9], [0.5, 0.7]])
        >>> most_uncertain(scores, torch.ones(2, 2, dtype=torch.bool), 0.5)
        tensor([[0, 1],
                [1, 1]])
    """
    if scores.shape != present.shape:
        raise ValueError(f"scores {tuple(scores.shape)}, present {tuple(present.shape)}")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    there = present.flatten().nonzero().flatten()
    wanted = min(len(there), max(1, int(fraction * len(there) + 0.5)))
    order = scores.flatten()[there].sort(descending=True, stable=True).indices
    chosen = there[order[:wanted]].sort().values
    return torch.stack([chosen // scores.shape[1], chosen % scores.shape[1]], dim=1)
