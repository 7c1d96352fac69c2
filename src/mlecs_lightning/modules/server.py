"""The model of the cloud server: a large language model, and the clients' small ones beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from mlecs_lightning.functional import gather_rows, sum_over_ranks, world_size
from mlecs_lightning.modules.base import MultimodalLM, as_settings
from mlecs_lightning.nn.backbone import Backbone
from mlecs_lightning.nn.tower import TowerOutput
from mlecs_lightning.settings import ModelSettings
from mlecs_lightning.types import Batch, ModalitySpec

__all__ = ["RepresentationSource", "ServerModule"]

RepresentationSource = Literal["connector", "backbone"]


class ServerModule(MultimodalLM):
    """One set of extractors, a tower for the LLM (which answers), a tower for each hosted SLM.

    A hosted SLM carries the aggregated adapter of a group of clients, those with its backbone and
    adapted layers; SE-CCL trains it beside the LLM. As a rule there is one group.

    Attributes:
        hosts: Names of the towers of the hosted SLMs, ``slm`` first.
        sharded: Whether each rank holds a part of a global batch, and gradients are averaged over
            ranks. An objective that uses `mean_loss` and `gather` then has the value (mean over
            ranks) and the gradient of the whole batch. In training mode only: ranks may evaluate
            different numbers of batches.
    """

    def __init__(
        self,
        settings: ModelSettings | Mapping[str, Any],
        hosted: ModelSettings | Mapping[str, Any],
        modalities: Mapping[str, ModalitySpec | Mapping[str, Any]],
        *,
        further: Mapping[str, ModelSettings | Mapping[str, Any]] | None = None,
        key: str = "server",
    ) -> None:
        """Build the model.

        Args:
            settings: The LLM, its adapter and connector; the extractors; the optimiser.
            hosted: Backbone and adapter of the clients' SLM. Its connector has the server's sizes.
            modalities: All modalities, in column order.
            further: The same as ``hosted`` for each further group of clients, by tower.
            key: The YAML key of the settings, for error messages.
        """
        settings, hosted = as_settings(settings), as_settings(hosted)
        beside = {"slm": hosted} | {h: as_settings(s) for h, s in (further or {}).items()}
        super().__init__({"llm": settings, **beside}, modalities, key=key)
        self.hosts = tuple(beside)
        self.sharded = False
        self._remember(settings=settings, hosted=hosted)
        if further:
            self.hparams["further"] = {h: beside[h].to_dict() for h in further}

    # A global batch -------------------------------------------------------------------------

    def token_mean(self, mean: Tensor, output: TowerOutput) -> Tensor:
        """Return a mean over target tokens, scaled so that its mean over ranks is that over all.

        With n_r tokens on rank r of W, and N on all, L_LM = sum_r n_r/N L_r = 1/W sum_r (W n_r/N)
        L_r: each rank returns W n_r/N times its own mean.
        """
        if not (self.sharded and self.training):
            return mean
        tokens = output.tokens()
        # At least one: a global batch may have no target at all.
        return mean * (world_size() * tokens / sum_over_ranks(tokens).clamp(min=1))

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of the global batch, for a loss that compares its samples.

        See `gather_rows` on order and gradient. Every rank must then compute the same loss, in
        full.
        """
        return gather_rows(rows) if self.sharded and self.training else rows

    # The hosted SLMs ------------------------------------------------------------------------

    def adapter_state(self, host: str = "slm") -> dict[str, Tensor]:
        """Return copies of a hosted SLM's adapter, under PEFT's names."""
        return self.tower(host).backbone.adapter_state()

    def load_adapter_state(
        self, state: Mapping[str, Tensor], *, mix: float = 1.0, host: str = "slm"
    ) -> None:
        """Write a hosted SLM's adapter; see `Backbone.load_adapter_state`."""
        self.tower(host).backbone.load_adapter_state(state, mix=mix)

    def host_of(self, backbone: Backbone) -> str:
        """Return the tower that hosts the SLM of an edge.

        Raises:
            KeyError: If none has the edge's backbone and adapted layers.
        """
        for host in self.hosts:
            if _kind(self.tower(host).backbone) == _kind(backbone):
                return host
        raise KeyError(f"none of {self.hosts} hosts {_kind(backbone)}")

    def represent(self, batch: Batch, *, source: RepresentationSource = "connector") -> Tensor:
        """Return the representation (B, D) that goes down to the clients as anchor of CCL.

        Args:
            batch: Public samples.
            source: ``connector`` is f, what the connector fused; ``backbone`` is g, what the LLM
                made of it.
        """
        embeddings = self.embed(batch)
        return embeddings.fused if source == "connector" else self.tower().view(embeddings)


def _kind(backbone: Backbone) -> tuple[str, str | None, set[str]]:
    """Return what two adapters must have in common to be averaged."""
    return backbone.settings.model, backbone.settings.revision, backbone.adapted_layers()
