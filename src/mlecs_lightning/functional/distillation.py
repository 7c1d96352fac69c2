"""Distillation losses between a student's logits or hidden states and a teacher's."""

import torch
from torch import Tensor


def distillation_loss(
    student: Tensor, teacher: Tensor, *, mask: Tensor, temperature: float = 1.0
) -> Tensor:
    """T^2 KL(teacher || student) over the vocabulary, averaged over the positions in ``mask``.

    Source: Hinton et al. 2015 (arXiv 1503.02531); the factor T^2 keeps the size of the gradient
    when T changes. No gradient flows to the teacher.

    Args:
        student: (..., V) logits.
        teacher: (..., V) logits over the same vocabulary.
        mask: (...) bool, the positions to average over.
        temperature: Temperature T, above 0.

    Returns:
        Scalar; zero if ``mask`` is False everywhere.

    Raises:
        ValueError: If shapes differ or T is not positive.

    Example:
        >>> logits = torch.tensor([[0.0, 1.0]])
        >>> distillation_loss(logits, logits, mask=torch.tensor([True])).item()
        0.0
    """
    if student.shape != teacher.shape or mask.shape != student.shape[:-1]:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have the same "
            f"shape, and mask {tuple(mask.shape)} that shape without the vocabulary"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    wanted = (teacher.detach().float() / temperature).log_softmax(dim=-1)
    given = (student.float() / temperature).log_softmax(dim=-1)
    divergence = (wanted.exp() * (wanted - given)).sum(dim=-1)
    counted = divergence.masked_fill(~mask, 0.0).sum()
    return temperature**2 * counted / mask.sum().clamp(min=1)


def common_columns(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns of two logits (..., V) that both have, for models of one vocabulary.

    Models of one family pad their output layers to different widths (Qwen2.5-0.5B to 151,936
    columns, 7B to 152,064), and no word has one of the columns beyond.
    """
    width = min(student.shape[-1], teacher.shape[-1])
    return student[..., :width], teacher[..., :width]


def position_distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of features, over the features and the positions in ``mask``.

    Source: FitNets (arXiv 1412.6550), in whose place of a regressor the caller puts an alignment
    layer. No gradient flows to the teacher.

    Args:
        student: (..., H) features, of the teacher's width.
        teacher: (..., H) features.
        mask: (...) bool, the positions to average over.

    Returns:
        Scalar; zero if ``mask`` is False everywhere.

    Raises:
        ValueError: If shapes differ.

    Example:
        >>> both = torch.tensor([[[0.0, 2.0], [9.0, 9.0]]])
        >>> position_distance(both, torch.zeros(1, 2, 2), torch.tensor([[True, False]])).item()
        2.0
    """
    if student.shape != teacher.shape or mask.shape != student.shape[:-1]:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have the same "
            f"shape, and mask {tuple(mask.shape)} that shape without the features"
        )
    each = (student.float() - teacher.detach().float()).square().mean(dim=-1)
    return each.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def hidden_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine similarity of the student's and the teacher's hidden states, mean over samples.

    Our choice of distance: both are projected into a common space in which scale has no meaning. No
    gradient flows to the teacher.

    Args:
        student: (B, D) projected hidden states.
        teacher: (B, D) projected hidden states.

    Returns:
        Scalar in [0, 2].

    Example:
        >>> hidden_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])).item()
        1.0
    """
    aligned = torch.cosine_similarity(student.float(), teacher.detach().float(), dim=-1)
    return 1 - aligned.mean()
