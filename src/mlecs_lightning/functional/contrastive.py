"""Contrastive loss over volumes: each anchor should span the least volume with its own sample."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mlecs_lightning.functional.volume import log_volume_and_det


class VolumeContrast(NamedTuple):
    """Contrastive loss with diagnostics, which show a collapse that the loss does not show.

    Attributes:
        loss: Scalar with gradient, at least 0; about ``ln(N)`` at chance.
        diagonal: Mean V of the anchors with their own samples, detached, in [0, 1].
        off_diagonal: Mean V over the contrasted pairs, detached, in [0, 1]; 0 if there are none.
        gram_det: Mean ``det K_j`` of the samples' own vectors, detached, in [0, 1].
        pairs: Number of contrasted ordered pairs (i, j), integer scalar, at most ``N * (N - 1)``.
    """

    loss: Tensor
    diagonal: Tensor
    off_diagonal: Tensor
    gram_det: Tensor
    pairs: Tensor


def volume_contrastive_loss(
    anchors: Tensor,
    vectors: Tensor,
    *,
    present: Tensor | None = None,
    classes: Tensor | None = None,
    temperature: float = 0.1,
) -> VolumeContrast:
    """Symmetric cross entropy over negative volumes, with the diagonal as target.

    ``S_ij = -V(a_i; v_j) / temperature``; the loss is the mean of the cross entropy over rows
    (anchor to data) and over columns (data to anchor). Source: GRAM (arXiv 2412.11959). The paper
    does not say which pairs to contrast; our choice is that i and j are contrasted only if

    - the same vectors are present in both, and at least one (volumes of different numbers of
      vectors are not comparable);
    - their classes differ (a sample with the same target would be a false negative).

    A sample without negatives contributes a loss of zero. The mean is over all N samples, like that
    of the language-model loss, so that a sample has the same weight in every batch, however many of
    its pairs are contrasted.

    Gradients flow to ``anchors`` and ``vectors``; detach them to stop this.

    Args:
        anchors: Anchor of each sample, shape (N, D), floating point, any norm.
        vectors: K vectors per sample, shape (N, K, D), floating point, any norm.
        present: Which of the vectors exist, bool, shape (N, K); all if None.
        classes: Class of each sample, integer, shape (N,); all different if None.
        temperature: Divisor of the volumes, above 0; the default is our choice.

    Returns:
        The loss and its diagnostics, float32, or float64 if an input is.

    Raises:
        ValueError: If the batch has fewer than 2 samples, shapes disagree, or the temperature is
            not above 0.

    Example:
        >>> anchors = torch.eye(3)[:2]
        >>> contrast = volume_contrastive_loss(anchors, anchors[:, None], temperature=0.1)
        >>> round(contrast.off_diagonal.item(), 4), int(contrast.pairs)
        (1.0, 2)
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    size = anchors.shape[0]
    if size < 2:
        raise ValueError(f"contrast needs a batch of at least 2, got {size}")
    if vectors.shape[0] != size:
        raise ValueError(
            f"anchors and vectors must have equally many samples, got {size} and {vectors.shape[0]}"
        )
    log_volume, log_det = log_volume_and_det(anchors, vectors, present)
    volume = log_volume.exp()
    negative = _negatives(size, volume.device, present=present, classes=classes)
    own = torch.eye(size, dtype=torch.bool, device=volume.device)
    logits = (-volume / temperature).masked_fill(~(negative | own), -torch.inf)
    target = torch.arange(size, device=volume.device)
    loss = 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))

    volume, pairs = volume.detach(), negative.sum()
    return VolumeContrast(
        loss=loss,
        diagonal=volume.diagonal().mean(),
        off_diagonal=(volume * negative).sum() / pairs.clamp_min(1),
        gram_det=log_det.detach().exp().mean(),
        pairs=pairs,
    )


def _negatives(
    size: int, device: torch.device, *, present: Tensor | None, classes: Tensor | None
) -> Tensor:
    """Return which pairs (i, j) are contrasted: bool (N, N), symmetric, False on the diagonal."""
    negative = ~torch.eye(size, dtype=torch.bool, device=device)
    if present is not None:
        negative &= (present[:, None] == present[None]).all(dim=-1) & present.any(dim=-1)
    if classes is not None:
        if classes.shape != (size,):
            raise ValueError(
                f"classes must have shape (N,) = ({size},), got {tuple(classes.shape)}"
            )
        negative &= classes[:, None] != classes[None]
    return negative
