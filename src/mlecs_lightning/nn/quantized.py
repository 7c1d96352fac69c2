"""Quantises a language model to 8-bit integers, for inference on the CPU of a device."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["int8_copy"]


def int8_copy(model: PeftModel) -> PreTrainedModel:
    """Return a copy with the adapter merged into the weights, and int8 weights in linear layers.

    The quantisation is dynamic: the weights of a layer have one scale, and activations are
    quantised in each call. Everything else stays in float32. The copy cannot be trained.

    Args:
        model: A language model on the CPU; it is not changed.
    """
    merged: PreTrainedModel = copy.deepcopy(model).float().merge_and_unload()
    _linear(merged)
    with warnings.catch_warnings():
        # torch warns that this function will move to torchao.
        warnings.simplefilter("ignore")
        torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            merged, {nn.Linear}, dtype=torch.qint8, inplace=True
        )
    return merged.eval()  # type: ignore[no-untyped-call, no-any-return]


def _linear(model: nn.Module) -> None:
    """Replace GPT-2's Conv1D layers, which store transposed weights, by equal linear layers."""
    from transformers.pytorch_utils import Conv1D

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                layer = nn.Linear(child.nx, child.nf)
                layer.weight = nn.Parameter(child.weight.detach().T.contiguous())
                layer.bias = nn.Parameter(child.bias.detach())
                layer._forward_pre_hooks.update(child._forward_pre_hooks)
                setattr(parent, name, layer)
