"""The model of an edge device: a small language model behind its own sensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mlecs_lightning.modules.base import MultimodalLM, as_settings
from mlecs_lightning.nn.backbone import Backbone
from mlecs_lightning.settings import ModelSettings
from mlecs_lightning.types import ModalitySpec

__all__ = ["EdgeModule"]


class EdgeModule(MultimodalLM):
    """Extractors, connector and SLM of one device: {E, C, B}.

    Example:
        Alone, under Lightning's own trainer::

            edge = EdgeModule(ModelSettings(backbone=BackboneSettings("gpt2")), modalities)
            Trainer(max_epochs=1).fit(edge, DataLoader(table, batch_size=8, collate_fn=whole_batch))
    """

    def __init__(
        self,
        settings: ModelSettings | Mapping[str, Any],
        modalities: Mapping[str, ModalitySpec | Mapping[str, Any]],
        *,
        key: str = "edge",
    ) -> None:
        """Build the model.

        Args:
            settings: The SLM, its adapter, the connector, the extractors and the optimiser.
            modalities: The modalities of this device, in column order.
            key: The YAML key of the settings, for error messages.
        """
        settings = as_settings(settings)
        super().__init__({"slm": settings}, modalities, key=key)
        self._remember(settings=settings)

    @property
    def backbone(self) -> Backbone:
        """The SLM with its adapter."""
        return self.tower().backbone

    def adapter_state(self) -> dict[str, Tensor]:
        """Return copies of the SLM adapter's trainable tensors, under PEFT's names."""
        return self.backbone.adapter_state()

    def load_adapter_state(self, state: Mapping[str, Tensor], *, mix: float = 1.0) -> None:
        """Write the SLM's adapter; see `Backbone.load_adapter_state`."""
        self.backbone.load_adapter_state(state, mix=mix)
