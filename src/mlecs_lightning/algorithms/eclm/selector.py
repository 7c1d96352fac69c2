"""The module selector of ECLM, and the frozen gate path of a device."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from mlecs_lightning.nn.connector import Connector

__all__ = ["GatePath", "ModuleSelector"]


class ModuleSelector(nn.Module):
    """Gate logits of all modules from the fused representation: Linear(LayerNorm(f))."""

    def __init__(self, width: int, shape: tuple[int, int]) -> None:
        """Build the selector.

        Args:
            width: Width D of f.
            shape: (L, K), layers and modules of each.
        """
        super().__init__()
        self.shape = shape
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, shape[0] * shape[1]))

    def forward(self, fused: Tensor) -> Tensor:
        """Return the logits (B, L, K) for f (B, D)."""
        return self.layers(fused).view(-1, *self.shape)  # type: ignore[no-any-return]


class GatePath(nn.Module):
    """A frozen copy of extractors, connector up to f, and selector, as the cloud trained them.

    A device keeps this copy beside the parts that it tunes, and measures importance and drift with
    it, so that its own training is never taken for a change of its data (our choice).
    """

    def __init__(
        self, extractors: nn.ModuleDict, connector: Connector, selector: ModuleSelector
    ) -> None:
        """Copy the parts; frozen tensors (encoders) are shared, not copied."""
        super().__init__()
        self.extractors, self.connector = _copy(extractors), _copy(connector)
        del self.connector.to_prompt
        self.selector = selector
        self.requires_grad_(False)

    def forward(self, inputs: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Return p (B, L, K), the softmax of the gates over the modules of a layer.

        Args:
            inputs: For each modality of the device (B, ...).
            present: (B, K) bool.
        """
        features = {m: self.extractors[m](x) for m, x in inputs.items()}  # type: ignore[index]
        _, _, fused = self.connector.latent(features, present)  # type: ignore[operator]
        return self.selector(fused).float().softmax(dim=-1)  # type: ignore[no-any-return]


def _copy(module: nn.Module) -> nn.Module:
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, memo={id(t): t for t in tensors if not t.requires_grad})
