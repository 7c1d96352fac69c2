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

    Some methods put a proxy beside it: a second tower over the same extractors, whose adapter
    travels in place of the answering one's, so that this one stays the device's own.

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
        proxy: ModelSettings | Mapping[str, Any] | None = None,
        key: str = "edge",
    ) -> None:
        """Build the model.

        Args:
            settings: The SLM, its adapter, the connector, the extractors and the optimiser.
            modalities: The modalities of this device, in column order.
            proxy: Backbone, adapter and connector of the proxy, for a method that has one.
            key: The YAML key of the settings, for error messages.
        """
        settings = as_settings(settings)
        beside = {} if proxy is None else {"proxy": as_settings(proxy)}
        super().__init__({"slm": settings, **beside}, modalities, key=key)
        self._remember(settings=settings, **beside)

    @property
    def backbone(self) -> Backbone:
        """The SLM whose adapter travels: the proxy where there is one."""
        return self.tower("proxy" if "proxy" in self.towers else None).backbone

    def adapter_state(self) -> dict[str, Tensor]:
        """Return copies of the trainable tensors of the adapter that travels, in PEFT's names."""
        return self.backbone.adapter_state()

    def load_adapter_state(self, state: Mapping[str, Tensor], *, mix: float = 1.0) -> None:
        """Write the adapter that travels; see `Backbone.load_adapter_state`."""
        self.backbone.load_adapter_state(state, mix=mix)
