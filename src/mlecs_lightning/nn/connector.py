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


class _Missing(nn.Module):
    """Learned vectors (T, F) that stand in for the absent tokens of a modality."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(tokens, width))

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Return (B, T * F), of which the absent ones of (B, T) tokens are replaced."""
        tokens = features.view(len(features), *self.weight.shape)
        return torch.where(present.unsqueeze(-1), tokens, self.weight.to(tokens.dtype)).flatten(1)


class Connector(nn.Module):
    """z_m = P_m E_m(x_m); f = Linear(LayerNorm([z_1 .. z_K])); S = Linear(Dropout(GELU(f))).

    This is the forward pass of ML-ECS (docs/method.md, Setting), with prompt length and width of
    the reference configuration. A learned vector replaces the z_m of an absent modality, so that f
    is defined for every subset of modalities (our choice).

    An encoder may give several tokens of a sample, one after another in its features: E_m(x_m) =
    [x_m1 .. x_mT]. Then single tokens may be absent too; a learned vector replaces each, and z_m is
    absent if all of them are (our choice).
    """

    def __init__(
        self,
        features: Mapping[str, int],
        hidden_size: int,
        *,
        settings: ConnectorSettings,
        slots: Sequence[str] | None = None,
        tokens: Mapping[str, int] | None = None,
    ) -> None:
        """Build the connector.

        Args:
            features: Output width of each modality's extractor, in column order.
            hidden_size: Hidden width H of the backbone.
            settings: Width D, prompt length P, dropout.
            slots: Names of the columns, if there are more than modalities: those of another
                connector whose weights this one must be able to load. Columns without a modality
                are always absent.
            tokens: Number of tokens of each modality; one by default.
        """
        super().__init__()
        width = settings.width
        self.slots = tuple(features if slots is None else slots)
        self.prompt_length = settings.prompt_length
        self.projections = ByModality({m: nn.Linear(n, width) for m, n in features.items()})
        self.tokens = {m: (tokens or {}).get(m, 1) for m in features}
        self.missing = ByModality(
            {m: _Missing(t, features[m] // t) for m, t in self.tokens.items() if t > 1}
        )
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
            present: (B, K) bool, whether a sample has a modality; or (B, T_1 + .. + T_K), whether
                it has a token, see `tokens`.

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
        if len(self.missing):
            features, present = self._filled(features, present)
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

    def token_columns(self, present: Tensor) -> Tensor:
        """Return (B, T_1 + .. + T_K), which tokens are present, from (B, K) of modalities."""
        columns = zip(present.unbind(dim=1), self.tokens.values(), strict=True)
        return torch.cat([x.unsqueeze(1).expand(-1, t) for x, t in columns], dim=1)

    def _filled(
        self, features: Mapping[str, Tensor], present: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Put learned vectors in the place of absent tokens; return also which z_m are there."""
        if present.shape[1] != sum(self.tokens.values()):
            present = self.token_columns(present)
        columns = torch.split(present, list(self.tokens.values()), dim=1)
        there = dict(zip(features, columns, strict=True))
        filled = {
            m: self.missing[m](x, there[m]) if m in self.missing else x for m, x in features.items()
        }
        return filled, torch.stack([mask.any(dim=1) for mask in there.values()], dim=1)
