"""Gates that select the modules a sample needs."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["load_balance", "mean_one", "top_k_gates"]


def top_k_gates(
    logits: Tensor, active: Tensor, *, noise: float = 0.0, weighted: bool = False
) -> tuple[Tensor, Tensor]:
    """Choose the modules with the largest gates, for each sample and layer (noisy top-k).

    The noise lets modules be tried that are not yet the best (arXiv 1701.06538, equations 3 to 5;
    its standard deviation is fixed here, our choice). The gate of a chosen module is exactly 1, as
    on a device, where modules are present or not; its gradient is that of p, the softmax over the
    modules of a layer (straight-through, our choice).

    Args:
        logits: (B, L, K) of K modules in each of L layers.
        active: (B,) int, number of modules in each layer that a sample uses.
        noise: Standard deviation of the noise on the logits.
        weighted: Whether the gate of a chosen module is its weight among the chosen ones, see
            `mean_one`, instead of 1.

    Returns:
        The gates (B, L, K), one or zero unless ``weighted``, and p (B, L, K).

    Example:
        >>> gates, p = top_k_gates(torch.tensor([[[0.0, 2.0, 1.0]]]), torch.tensor([2]))
        >>> gates.tolist()
        [[[0.0, 1.0, 1.0]]]
    """
    if noise:
        logits = logits + noise * torch.randn_like(logits)
    p = logits.float().softmax(dim=-1)
    place = p.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    chosen = place < active.view(-1, 1, 1)
    return mean_one(p, chosen) if weighted else chosen * (1.0 + (p - p.detach())), p


def mean_one(p: Tensor, chosen: Tensor) -> Tensor:
    """Return the weights of chosen modules: their gates, scaled to a mean of one in each layer.

    Where all gates are equal, every chosen module counts fully, as without weights (our choice; in
    Nebula the gates add up to one).

    Args:
        p: (..., K) gates, positive.
        chosen: (..., K) bool.

    Returns:
        (..., K), zero where a module is not chosen.

    Example:
        >>> mean_one(torch.tensor([0.6, 0.2, 0.2]), torch.tensor([True, True, False])).tolist()
        [1.5, 0.5, 0.0]
    """
    kept = p * chosen
    return kept * chosen.sum(dim=-1, keepdim=True) / kept.sum(dim=-1, keepdim=True).clamp_min(1e-9)


def load_balance(p: Tensor) -> Tensor:
    """Return the load-balancing loss: the squared coefficient of variation of module importance.

    The importance of a module is sum_b p; the loss is averaged over the layers (arXiv 1701.06538,
    equations 6 and 7). Zero if all modules of a layer are used equally.

    Args:
        p: (B, L, K) gates before the choice, of the whole batch.

    Returns:
        A scalar.

    Example:
        >>> load_balance(torch.tensor([[[0.25, 0.75]], [[0.75, 0.25]]])).item()
        0.0
        >>> load_balance(torch.tensor([[[0.25, 0.75]]])).item()
        0.25
    """
    importance = p.sum(dim=0)
    return (importance.var(dim=-1, correction=0) / importance.mean(dim=-1).square()).mean()
