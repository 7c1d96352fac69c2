"""What a language model reads in the place of tokens."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["as_embeddings"]


def as_embeddings(prompt: Tensor, embed: nn.Module) -> Tensor:
    """Return a soft prompt as the layer of the token embeddings would return it.

    Some models, such as those of the Gemma family, multiply the embeddings of tokens by the root of
    their width in that layer.

    Args:
        prompt: (B, P, H).
        embed: The layer.

    Returns:
        (B, P, H), in the type of the layer's weights.
    """
    found = getattr(embed, "scalar_embed_scale", getattr(embed, "embed_scale", None))
    scale = 1.0 if found is None else float(found)
    scaled = prompt if scale == 1.0 else prompt * scale
    return scaled.to(embed.weight.dtype)  # type: ignore[arg-type]
