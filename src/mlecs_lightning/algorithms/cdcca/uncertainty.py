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


def relative_variance(passes: Tensor) -> Tensor:
    """Return the variance of features over dropout passes, relative to their size.

    The population variance of each feature over the passes, summed over the features, divided by
    their mean squared length: 1 - |mean x|^2 / mean |x|^2. So that sensors whose features differ in
    scale can be compared.

    Args:
        passes: (S, ..., F) features of S passes.

    Returns:
        (...) in [0, 1]; zero where all features are zero.

    Example:
        >>> relative_variance(torch.tensor([[[3.0, 0.0]], [[1.0, 0.0]]]))
        tensor([0.2000])
    """
    passes = passes.float()
    length = passes.square().sum(dim=-1).mean(dim=0)
    spread = passes.var(dim=0, correction=0).sum(dim=-1)
    return torch.where(length > 0, spread / length.clamp_min(torch.finfo(length.dtype).tiny), 0.0)


def most_uncertain(
    scores: Tensor, present: Tensor, fraction: float, *, among: Tensor | None = None
) -> Tensor:
    """Return the positions of the tokens with the highest scores.

    Args:
        scores: (N, K) uncertainty of K tokens of N samples.
        present: (N, K) bool; absent tokens are never chosen.
        fraction: Share rho in (0, 1] of the present tokens to choose; rounded, at least one.
        among: (N,) bool, the samples whose tokens may be chosen; all by default. If they have fewer
            tokens than wanted, all of theirs are chosen.

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
    wanted = max(1, int(fraction * int(present.sum()) + 0.5))
    if among is not None:
        present = present & among.unsqueeze(1)
    there = present.flatten().nonzero().flatten()
    wanted = min(len(there), wanted)
    order = scores.flatten()[there].sort(descending=True, stable=True).indices
    chosen = there[order[:wanted]].sort().values
    return torch.stack([chosen // scores.shape[1], chosen % scores.shape[1]], dim=1)
