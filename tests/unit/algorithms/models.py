"""Language models that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mlecs_lightning.nn.backbone import Backbone


def wider_model(source: str, path: Path, *, columns: int) -> str:
    """Write an untrained model of the same vocabulary whose output layer has more columns."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(source)
    config.vocab_size += columns
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(source).save_pretrained(path)
    return str(path)


@contextmanager
def saying_nothing(backbone: Backbone) -> Iterator[None]:
    """Let a model end every answer before its first word."""

    def ends(_: object, __: object, logits: Tensor) -> Tensor:
        end = torch.zeros_like(logits)
        end[..., backbone.coder.end] = 1e4
        return logits + end

    hook = backbone.lm.get_output_embeddings().register_forward_hook(ends)
    try:
        yield
    finally:
        hook.remove()
