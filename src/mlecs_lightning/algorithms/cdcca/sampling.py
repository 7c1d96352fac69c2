"""Uncertainty-guided token sampling (UTS), which CD-CCA runs on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from mlecs_lightning.algorithms.cdcca.tokens import Tokens
from mlecs_lightning.algorithms.cdcca.uncertainty import dropout_variance, predictive_entropy
from mlecs_lightning.modules import EdgeModule
from mlecs_lightning.types import Batch

__all__ = ["token_uncertainty", "tokens_of"]


def tokens_of(module: EdgeModule, batch: Batch) -> Tokens:
    """Return the outputs of the extractors for a batch."""
    features, present = module.features(batch)
    return Tokens(
        {
            m: x.float().masked_fill(~present[:, k : k + 1], 0.0)
            for k, (m, x) in enumerate(features.items())
        },
        present,
        batch.instructions,
    )


@torch.no_grad()
def token_uncertainty(
    module: EdgeModule, tokens: Tokens, *, passes: int, variance_weight: float
) -> Tensor:
    """Return the uncertainty of each token: entropy plus weighted variance over dropout passes.

    The two measures are those of arXiv 2312.16279; how they are applied is our choice. The model
    answers from all tokens of a sample, then reads its own answer again under dropout. The entropy
    of its mean next-token distributions belongs to the sample, and all its tokens share it. To
    tell the tokens apart, the model also reads the answer from each token alone; the variance of
    its distributions over the passes belongs to that token.

    Args:
        module: The device's model; left in evaluation mode.
        tokens: N samples of K modalities.
        passes: Number of dropout passes.
        variance_weight: Weight of the variance relative to the entropy.

    Returns:
        (N, K); undefined where a token is absent.
    """
    module.eval()
    tower, modalities = module.tower(), list(tokens.features)
    answers = tower.generate(tower.connector(tokens.features, tokens.present), tokens.instructions)
    # First all samples with all their tokens, then with the first token alone, the second, ...
    many = len(modalities)
    alone = torch.eye(many, dtype=torch.bool, device=tokens.present.device)
    present = torch.cat([tokens.present, alone.repeat_interleave(tokens.samples, dim=0)])
    features = {m: x.repeat(many + 1, 1) for m, x in tokens.features.items()}
    text = (tokens.instructions * (many + 1), answers * (many + 1))
    module.train()
    try:
        outputs = [tower(features, present, *text) for _ in range(passes)]
    finally:
        module.eval()
    mask = outputs[0].labels >= 0
    probabilities = torch.stack([output.logits.float().softmax(dim=-1) for output in outputs])
    entropy = predictive_entropy(probabilities.mean(dim=0), mask)[: tokens.samples]
    variance = dropout_variance(probabilities, mask)[tokens.samples :].view(many, -1)
    return entropy.unsqueeze(1) + variance_weight * variance.T
