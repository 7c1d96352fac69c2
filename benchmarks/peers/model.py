"""The model of the workload, written plainly: no line of mlecs_lightning in it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmarks.peers.workload import TARGETS, Sizes, Work

__all__ = ["PromptLM", "prompt_network"]


def prompt_network(sizes: Sizes) -> nn.Sequential:
    """Return what makes a soft prompt of a vector: (B, F) to (B, P * H)."""
    d = sizes.latent
    return nn.Sequential(
        nn.Linear(sizes.features, 64),
        nn.GELU(),
        nn.Linear(64, 64),
        nn.Linear(64, d),
        nn.LayerNorm(d),
        nn.Linear(d, d),
        nn.GELU(),
        nn.Linear(d, sizes.prompt * sizes.width),
    )


class PromptLM(nn.Module):
    """A frozen GPT-2 behind a fixed soft prompt, with a LoRA adapter by PEFT that trains."""

    def __init__(self, work: Work) -> None:
        """Load the backbone and the prompt's weights; the adapter is the initial one."""
        super().__init__()
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        sizes = self.sizes = work.sizes
        lm = AutoModelForCausalLM.from_pretrained(work.backbone)
        config = LoraConfig(
            r=sizes.rank, lora_alpha=2 * sizes.rank, target_modules=TARGETS, fan_in_fan_out=True
        )
        self.lm = get_peft_model(lm, config)
        self.prompt = prompt_network(sizes).requires_grad_(False)
        self.prompt.load_state_dict(work.prompt)
        self._adapter = {
            name.replace(".default.", "."): p
            for name, p in self.lm.named_parameters()
            if p.requires_grad
        }
        self.load_adapter(work.adapter)

    def adapter(self) -> dict[str, nn.Parameter]:
        """Return the live adapter, under PEFT's names."""
        return self._adapter

    @torch.no_grad()
    def load_adapter(self, state: Mapping[str, Tensor]) -> None:
        """Write the adapter."""
        for name, parameter in self._adapter.items():
            parameter.copy_(state[name])

    def loss(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return the mean cross entropy of the target tokens.

        Args:
            x: (B, F).
            tokens: (B, L) instruction and target.
        """
        sizes = self.sizes
        prompt = self.prompt(x).view(len(x), sizes.prompt, sizes.width)
        words = self.lm.get_input_embeddings()(tokens)
        logits = self.lm(
            inputs_embeds=torch.cat([prompt, words], dim=1),
            use_cache=False,
            logits_to_keep=sizes.tail + 1,
        ).logits[:, :-1]
        answer = tokens[:, sizes.head :]
        return nn.functional.cross_entropy(logits.flatten(0, 1), answer.flatten())
