"""The models of Dawid and Skene: the truth, and who tells it, from what many say."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["MAX_CLASSES", "confusion", "one_coin"]

MAX_CLASSES = 200
"""Maximum number of classes of `confusion`, which has a matrix for each client. Our choice."""

_ITERATIONS = 50
_PRIOR = 5.0
"""Number of samples of each class that count for the one-coin form in `confusion`. Our choice."""


def one_coin(told: Tensor, *, classes: int, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Estimate the truth and the reliabilities of those who tell it.

    The one-coin form of Dawid and Skene (Applied Statistics 28(1), 1979): client j answers right
    with probability r_j, and otherwise with any of the other K - 1 classes. Expectation
    maximisation starts from the plain vote.

    Args:
        told: (J, N) the class that each of J says of N samples, -1 for nothing.
        classes: K, at least 1.
        known: (N,) the class of the samples whose truth is known, -1 for the others.

    Returns:
        The posterior (N, K) of the truth, a flat one where nobody says anything; and (J,) how often
        each is right, within [1 / (2 K), 1 - 1e-3].
    """
    spoken, index = told >= 0, told.clamp(min=0)

    def votes(strength: Tensor) -> Tensor:
        """Return (N, K), the sum of the strengths (J,) of all who say a class."""
        each = strength.unsqueeze(1) * spoken
        zeros = torch.zeros(told.shape[1], classes, dtype=torch.float64)
        return zeros.scatter_add_(1, index.T, each.T)

    counts = votes(torch.ones(len(told), dtype=torch.float64))
    posterior = (counts + 1 / classes) / (counts.sum(dim=1, keepdim=True) + 1)
    posterior = _certain(posterior, known)
    reliability = torch.zeros(len(told), dtype=torch.float64)
    for _ in range(_ITERATIONS):
        right = (posterior.gather(1, index.T).T * spoken).sum(dim=1)
        # Laplace's rule of succession, so that no client counts as certain.
        reliability = ((right + 1) / (spoken.sum(dim=1) + 2)).clamp(1 / (2 * classes), 1 - 1e-3)
        wrong = (1 - reliability) / max(classes - 1, 1)
        posterior = _certain(votes((reliability / wrong).log()).softmax(dim=1), known)
    return posterior, reliability


def confusion(told: Tensor, *, classes: int, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Estimate the truth, and for each client what it says of which class.

    The full model of Dawid and Skene (1979): client j says l of a sample of class k with
    probability pi_j[k, l], and class k has the share p_k. Expectation maximisation starts from
    `one_coin`, whose estimate also counts as a few samples of every class, so that rare classes
    fall back on it.

    Args:
        told: (J, N) the class that each of J says of N samples, -1 for nothing.
        classes: K, at least 1.
        known: (N,) the class of the samples whose truth is known, -1 for the others.

    Returns:
        The posterior (N, K) of the truth, and pi (J, K, K); its rows sum to 1.

    Raises:
        ValueError: If there are more than `MAX_CLASSES` classes.
    """
    if classes > MAX_CLASSES:
        raise ValueError(f"classes must be at most {MAX_CLASSES}, got {classes}")
    posterior, reliability = one_coin(told, classes=classes, known=known)
    coins = torch.stack([_coin(float(each), classes) for each in reliability])
    matrices = coins
    for _ in range(_ITERATIONS):
        matrices = torch.stack(
            [_matrix(*each, posterior) for each in zip(told, coins, strict=True)]
        )
        share = (posterior.sum(dim=0) + 1) / (len(posterior) + classes)
        score = share.log().repeat(told.shape[1], 1)
        for said, matrix in zip(told, matrices, strict=True):
            spoken = said >= 0
            score[spoken] += matrix.log()[:, said[spoken]].T
        posterior = _certain(score.softmax(dim=1), known)
    return posterior, matrices


def _coin(reliability: float, classes: int) -> Tensor:
    """Return the matrix (K, K) of a client that is right with one probability in all classes."""
    if classes == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    matrix = torch.full((classes, classes), (1 - reliability) / (classes - 1), dtype=torch.float64)
    return matrix.fill_diagonal_(reliability)


def _matrix(said: Tensor, coin: Tensor, posterior: Tensor) -> Tensor:
    """Return what a client says (N,) of each class, drawn towards its one-coin form."""
    spoken = said >= 0
    counts = torch.zeros_like(coin).index_add_(1, said[spoken], posterior[spoken].T)
    return (counts + _PRIOR * coin) / (counts.sum(dim=1, keepdim=True) + _PRIOR)


def _certain(posterior: Tensor, known: Tensor | None) -> Tensor:
    """Return the posterior (N, K) in which the known classes (N,) are certain."""
    if known is None:
        return posterior
    sure = torch.zeros_like(posterior).scatter_(1, known.clamp(min=0).unsqueeze(1), 1.0)
    return torch.where((known >= 0).unsqueeze(1), sure, posterior)
