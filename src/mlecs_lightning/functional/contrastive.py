"""Contrastive loss over volumes: each anchor must span the least volume with its own sample."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mlecs_lightning.functional.volume import gram_log_det, gram_log_volume


class VolumeContrast(NamedTuple):
    """Loss over volumes, with the figures that show a collapse: the loss alone does not.

    Attributes:
        loss: Scalar with gradient, from 0 upwards; about ``ln(N)`` at chance.
        diagonal: Mean V of the anchors with their own samples, detached, in [0, 1].
        off_diagonal: Mean V over the contrasted pairs, detached, in [0, 1]; 0 if there are none.
        gram_det: Mean ``det K_j`` of the samples' own vectors, detached, in [0, 1].
        pairs: Number of ordered pairs (i, j) contrasted, integer scalar; ``N * (N - 1)`` at most.
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
    """Symmetric cross entropy over volumes, target = the diagonal.

    ``S_ij = -V(a_i; v_j) / temperature``; loss = 1/2 (cross entropy over the rows, anchor to data,
    + cross entropy over the columns, data to anchor). Source: GRAM (arXiv 2412.11959). Our choice,
    where it is silent: i and j are contrasted only if

    - the same vectors are present in both (volumes of different numbers of vectors are not
      comparable), and at least one is;
    - their classes differ: a sample with the same target is no negative, but a false one.

    A sample left without a negative contributes a loss of zero. The mean is over all N samples, as
    that of the language-model loss is, so that a sample weighs the same in every batch: a batch
    with a single pair to contrast does not give that pair the weight of a whole batch.

    Gradients reach ``anchors`` and ``vectors`` wherever the caller left them attached.

    Args:
        anchors: Anchor of each sample, shape (N, D), floating point, any norm.
        vectors: K vectors a sample, shape (N, K, D), floating point, any norm.
        present: Which of the vectors exist, bool, shape (N, K); all of them if None.
        classes: Class of each sample, integer, shape (N,); all different if None.
        temperature: Divisor of the volumes, above 0. 0.1 is our choice.

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
            f"anchors and vectors must be of the same samples, got {size} and {vectors.shape[0]}"
        )
    volume = gram_log_volume(anchors, vectors, present).exp()
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
        gram_det=gram_log_det(vectors.detach(), present).exp().mean(),
        pairs=pairs,
    )


def _negatives(
    size: int, device: torch.device, *, present: Tensor | None, classes: Tensor | None
) -> Tensor:
    """Which pairs (i, j) are contrasted: bool, shape (N, N), symmetric, diagonal False."""
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
