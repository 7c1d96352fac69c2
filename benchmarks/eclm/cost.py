"""What a sub-model costs: size, memory and time of its MLPs."""

from __future__ import annotations

import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch


def cost(share: float, repeats: int = 5) -> dict[str, Any]:
    """Measure the MLPs of a GPT-2 of 124 M parameters, cut to a share of its modules.

    Random weights: size and time do not depend on them. The whole weights are gone before memory is
    read. Resident memory of the MLPs is what the process gives back when they are dropped; time is
    that of the processor for one pass of 512 tokens through all of them, one thread.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    from mlecs_lightning.algorithms.eclm.modular import ModularMLPs

    torch.manual_seed(0)
    lm = GPT2LMHeadModel(GPT2Config()).requires_grad_(False)
    lora = LoraConfig(r=8, target_modules=["c_fc", "mlp.c_proj"], fan_in_fan_out=True)
    lm = get_peft_model(lm, lora)
    mlps = [block.mlp for block in lm.base_model.model.transformer.h]
    modular = ModularMLPs(lm, 8)
    mask = torch.zeros(modular.shape, dtype=torch.bool)
    mask[:, : round(share * 8)] = True
    modular.select(mask)
    for block in modular._blocks:
        for layer in block:
            layer.weight, layer.bias = layer.base.weight, layer.base.bias
    x, seconds = torch.randn(8, 64, 768), []
    with torch.inference_mode():
        for _ in range(repeats + 2):
            began = time.process_time()
            for mlp in mlps:
                mlp(x)
            seconds.append(time.process_time() - began)
    parameters = sum(p.numel() for mlp in mlps for p in mlp.parameters())
    size = sum(p.numel() * p.element_size() for mlp in mlps for p in mlp.parameters())
    trim()
    before = rss()
    for block in modular._blocks:
        for layer in block:
            layer.weight, layer.bias = layer.base.weight, layer.base.bias = None, None
    trim()
    return {
        **{"kind": "cost", "share": share, "mlp_parameters": parameters},
        "mlp_mib": round(size / 2**20, 1),
        "mlp_resident_mib": round(before - rss(), 1),
        "mlp_ms": round(1e3 * statistics.median(seconds[2:]), 1),
    }


def rss() -> float:
    """Return the resident set of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 2**20


def trim() -> None:
    """Hand freed memory back to the system, where the C library can."""
    import ctypes
    import gc

    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)
