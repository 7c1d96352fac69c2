"""UTS: uncertainty-guided token sampling, the device's side of CD-CCA."""

from __future__ import annotations

import torch
from torch import Tensor

from mlecs_lightning.federated.tokens import Tokens
from mlecs_lightning.functional import dropout_variance, predictive_entropy
from mlecs_lightning.modules import EdgeModule
from mlecs_lightning.types import Batch

__all__ = ["token_uncertainty", "tokens_of"]


def tokens_of(module: EdgeModule, batch: Batch) -> Tokens:
    """Return what the extractors make of a batch, all of it."""
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
    """Return how unsure the model is of each token.

    The model answers from all tokens of a sample. Then it reads that answer again from each token
    alone, several times under dropout: how sure is it of its own words if this is all it sees? The
    uncertainty is the entropy of the mean of its next-token distributions, plus their variance over
    the passes (arXiv 2312.16279 names the two; how they are taken is our choice).

    Args:
        module: The device's model; left in evaluation mode.
        tokens: N samples of K modalities.
        passes: Dropout passes.
        variance_weight: Weight of the variance beside the entropy.

    Returns:
        (N, K); without meaning where a token is not there.
    """
    module.eval()
    tower, modalities = module.tower(), list(tokens.features)
    answers = tower.generate(tower.connector(tokens.features, tokens.present), tokens.instructions)
    many = len(modalities)
    features = {m: x.repeat(many, 1) for m, x in tokens.features.items()}
    alone = torch.eye(many, dtype=torch.bool, device=tokens.present.device)
    present = alone.repeat_interleave(tokens.samples, dim=0)
    text = (tokens.instructions * many, answers * many)
    module.train()
    try:
        outputs = [tower(features, present, *text) for _ in range(passes)]
    finally:
        module.eval()
    mask = outputs[0].labels >= 0
    probabilities = torch.stack([output.logits.float().softmax(dim=-1) for output in outputs])
    scores = predictive_entropy(probabilities.mean(dim=0), mask)
    scores = scores + variance_weight * dropout_variance(probabilities, mask)
    return scores.view(many, tokens.samples).T.contiguous()
