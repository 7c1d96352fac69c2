"""The connector C: fuses the present modalities into one latent vector and a soft prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mlecs_lightning.nn.by_modality import ByModality
from mlecs_lightning.settings import ConnectorSettings

__all__ = ["Connector", "Embeddings"]


class Embeddings(NamedTuple):
    """The representations of a batch that the connector computes.

    Attributes:
        modalities: (B, K, D) latent vectors z_m; those of absent modalities are zero and must be
            masked by ``present``.
        present: (B, K) bool, whether a sample has a modality.
        fused: (B, D) fused representation f.
        prompt: (B, P, H) soft prompt S.
        words: The tokens of the text modalities of B samples, which follow the prompt; empty if no
            modality is read as tokens.
    """

    modalities: Tensor
    present: Tensor
    fused: Tensor
    prompt: Tensor
    words: tuple[tuple[int, ...], ...] = ()

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Return the vectors that span the volume, all z_m and f.

        Returns:
            Vectors (B, K + 1, D), and which of them are present (B, K + 1).
        """
        vectors = torch.cat([self.modalities, self.fused.unsqueeze(1)], dim=1)
        return vectors, nn.functional.pad(self.present, (0, 1), value=True)


class Connector(nn.Module):
    """z_m = P_m E_m(x_m); f = Linear(LayerNorm([z_1 .. z_K])); S = Linear(Dropout(GELU(f))).

    This is the forward pass of ML-ECS (docs/method.md, Setting), with prompt length and width of
    the reference configuration. A learned vector replaces the z_m of an absent modality, so that f
    is defined for every subset of modalities (our choice).
    """

    def __init__(
        self,
        features: Mapping[str, int],
        hidden_size: int,
        *,
        settings: ConnectorSettings,
        slots: Sequence[str] | None = None,
    ) -> None:
        """Build the connector.

        Args:
            features: Output width of each modality's extractor, in column order.
            hidden_size: Hidden width H of the backbone.
            settings: Width D, prompt length P, dropout.
            slots: Names of the columns, if there are more than modalities: those of another
                connector whose weights this one must be able to load. Columns without a modality
                are always absent.
        """
        super().__init__()
        width = settings.width
        self.slots = tuple(features if slots is None else slots)
        self.prompt_length = settings.prompt_length
        self.projections = ByModality({m: nn.Linear(n, width) for m, n in features.items()})
        self.absent = nn.Parameter(torch.zeros(len(self.slots), width))
        self.fuse = nn.Sequential(
            nn.LayerNorm(len(self.slots) * width), nn.Linear(len(self.slots) * width, width)
        )
        self.to_prompt = nn.Sequential(
            nn.GELU(),
            nn.Dropout(settings.dropout),
            nn.Linear(width, self.prompt_length * hidden_size),
        )
        # The prompt starts at the scale of word embeddings: language models initialise them so.
        last: nn.Linear = self.to_prompt[-1]  # type: ignore[assignment]
        for weight in (self.absent, last.weight):
            nn.init.normal_(weight, std=0.02)
        nn.init.zeros_(last.bias)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Embeddings:
        """Fuse the features.

        Args:
            features: (B, features) of each modality, in column order.
            present: (B, K) bool, whether a sample has a modality.

        Returns:
            The `Embeddings` of the batch.
        """
        z, present, fused = self.latent(features, present)
        prompt = self.to_prompt(fused).view(len(fused), self.prompt_length, -1)
        return Embeddings(z, present, fused, prompt)

    def latent(
        self, features: Mapping[str, Tensor], present: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return z (B, K, D), which of them are present (B, K), and f (B, D), without a prompt."""
        vectors = {m: self.projections[m](x) for m, x in features.items()}
        if self.slots != tuple(features):
            column = dict(zip(features, present.unbind(dim=1), strict=True))
            nothing = torch.zeros_like(next(iter(vectors.values())))
            nobody = torch.zeros_like(present[:, 0])
            vectors = {m: vectors.get(m, nothing) for m in self.slots}
            present = torch.stack([column.get(m, nobody) for m in self.slots], dim=1)
        z = torch.stack(list(vectors.values()), dim=1)
        mask = present.unsqueeze(-1)
        filled = torch.where(mask, z, self.absent.to(z.dtype))
        return torch.where(mask, z, 0.0), present, self.fuse(filled.flatten(1))
