"""Distillation between models that predict the same tokens."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["logit_distillation"]


def logit_distillation(
    student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Return T^2 KL(teacher || student) of softened next-token distributions (arXiv 1503.02531).

    Computed in float32 whatever the inputs are. No gradient reaches the teacher.

    Args:
        student: (B, T, V) logits.
        teacher: (B, T, V) logits over the same vocabulary.
        mask: (B, T) bool, the positions to compare.
        temperature: T; T^2 keeps the gradient's scale independent of it.

    Returns:
        The mean over the masked positions, scalar; zero if there are none.

    Raises:
        ValueError: If the shapes differ: other vocabularies or other token positions.
    """
    if student.shape != teacher.shape or mask.shape != student.shape[:-1]:
        raise ValueError(
            f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)} and mask "
            f"{tuple(mask.shape)} must agree in positions and vocabulary"
        )
    with torch.autocast(student.device.type, enabled=False):
        log_q = (student.float() / temperature).log_softmax(dim=-1)
        log_p = (teacher.detach().float() / temperature).log_softmax(dim=-1)
        each = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
        chosen = torch.where(mask, each, each.new_zeros(()))
        return temperature**2 * chosen.sum() / mask.sum().clamp(min=1)
