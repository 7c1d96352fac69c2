"""The model of an edge device: a small language model that reads the device's sensors."""

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
    """Extractors E, connector C and SLM B of one device.

    Some methods add a proxy, a second tower over the same extractors. The device exchanges the
    proxy's adapter with the server and keeps that of the first tower, which answers, to itself.

    Example:
        Training without a federation, with Lightning's own trainer::

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
            modalities: Kind and shape of the device's modalities, in column order.
            proxy: Backbone, adapter and connector of the proxy, for methods that have one.
            key: The YAML key of the settings, for error messages.
        """
        settings = as_settings(settings)
        beside = {} if proxy is None else {"proxy": as_settings(proxy)}
        super().__init__({"slm": settings, **beside}, modalities, key=key)
        self._remember(settings=settings, **beside)

    @property
    def backbone(self) -> Backbone:
        """The backbone whose adapter is exchanged: that of the proxy if there is one."""
        return self.tower("proxy" if "proxy" in self.towers else None).backbone

    def adapter_state(self) -> dict[str, Tensor]:
        """Return copies of the trainable tensors of the exchanged adapter, under PEFT's names."""
        return self.backbone.adapter_state()

    def load_adapter_state(self, state: Mapping[str, Tensor], *, mix: float = 1.0) -> None:
        """Set the exchanged adapter; see `Backbone.load_adapter_state`."""
        self.backbone.load_adapter_state(state, mix=mix)
