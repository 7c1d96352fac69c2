"""The connector C: from the modalities present to one latent vector and a soft prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mlecs_lightning.nn.by_modality import ByModality
from mlecs_lightning.settings import ConnectorSettings

__all__ = ["Connector", "Embeddings"]


class Embeddings(NamedTuple):
    """What a model makes of the sensors, before its language model speaks.

    Attributes:
        modalities: (B, K, D) latent vectors z_m; those of absent modalities are zero and must be
            masked by ``present``.
        present: (B, K) bool.
        fused: (B, D) fused representation f.
        prompt: (B, P, H) soft prompt S.
    """

    modalities: Tensor
    present: Tensor
    fused: Tensor
    prompt: Tensor

    def vectors(self) -> tuple[Tensor, Tensor]:
        """Return the vectors of the volume, (B, K + 1, D): all z_m and f, and which are present."""
        vectors = torch.cat([self.modalities, self.fused.unsqueeze(1)], dim=1)
        return vectors, nn.functional.pad(self.present, (0, 1), value=True)


class Connector(nn.Module):
    """z_m = P_m E_m(x_m); f = Linear(LayerNorm([z_1 .. z_K])); S = Linear(Dropout(GELU(f))).

    Forward pass of ML-ECS (docs/method.md, Setting); prompt length and width as in the reference
    configuration. A learned vector stands in for the z_m of an absent modality, so that f is
    defined for every subset (our choice).
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
            features: For each modality, in column order, the width of its extractor.
            hidden_size: Hidden width H of the backbone.
            settings: Width D, prompt length P, dropout.
            slots: The columns, if there are more than modalities: of all that another connector
                has, so that its weights fit this one. What is no modality here is always absent.
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
        # A prompt that starts near the scale of word embeddings, as language models initialise
        # theirs.
        last: nn.Linear = self.to_prompt[-1]  # type: ignore[assignment]
        for weight in (self.absent, last.weight):
            nn.init.normal_(weight, std=0.02)
        nn.init.zeros_(last.bias)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Embeddings:
        """Fuse the features.

        Args:
            features: For each modality (B, features), in column order.
            present: (B, K) bool.

        Returns:
            The `Embeddings` of the batch.
        """
        z, present, fused = self.latent(features, present)
        prompt = self.to_prompt(fused).view(len(fused), self.prompt_length, -1)
        return Embeddings(z, present, fused, prompt)

    def latent(
        self, features: Mapping[str, Tensor], present: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return z (B, K, D), which of them are present (B, K), and f (B, D): no prompt."""
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
