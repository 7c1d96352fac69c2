"""The model of the cloud server: a large language model, and copies of the clients' small ones."""

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
    """Shared extractors, a tower for the LLM (which answers), and a tower for each hosted SLM.

    A hosted SLM has the aggregated adapter of a group of clients: those with the same backbone and
    adapted layers. SE-CCL trains it together with the LLM. Usually there is one group.

    Attributes:
        hosts: Names of the towers of the hosted SLMs, ``slm`` first.
        sharded: Whether each rank holds a part of the global batch, and gradients are averaged over
            ranks. Objectives that use `mean_loss` and `gather` then have the value (averaged over
            ranks) and the gradient of the global batch. It applies in training mode only, since
            ranks may evaluate different numbers of batches.
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
            hosted: Backbone and adapter of the clients' SLM; its connector has the server's sizes.
            modalities: Kind and shape of all modalities, in column order.
            further: Like ``hosted``, for each further group of clients, by name of the tower.
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

    # Batches shared by several ranks --------------------------------------------------------

    def token_mean(self, mean: Tensor, output: TowerOutput) -> Tensor:
        """Scale a mean over target tokens so that its average over ranks is the mean over all.

        With n_r tokens on rank r of W, and N on all ranks, L_LM = sum_r n_r/N L_r = 1/W sum_r
        (W n_r/N) L_r: each rank returns W n_r/N times its own mean.

        Args:
            mean: Mean over the target tokens of this rank, scalar.
            output: The pass that it was computed from.
        """
        if not (self.sharded and self.training):
            return mean
        tokens = output.tokens()
        # At least one: a global batch may have no target at all.
        return mean * (world_size() * tokens / sum_over_ranks(tokens).clamp(min=1))

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of the global batch, for a loss that compares samples with each other.

        Every rank must compute the same loss of all rows: see `gather_rows`, also on their order.

        Args:
            rows: (B, ...) rows of this rank.
        """
        return gather_rows(rows) if self.sharded and self.training else rows

    # The hosted SLMs ------------------------------------------------------------------------

    def adapter_state(self, host: str = "slm") -> dict[str, Tensor]:
        """Return copies of the adapter of a hosted SLM, under PEFT's names."""
        return self.tower(host).backbone.adapter_state()

    def load_adapter_state(
        self, state: Mapping[str, Tensor], *, mix: float = 1.0, host: str = "slm"
    ) -> None:
        """Set the adapter of a hosted SLM; see `Backbone.load_adapter_state`."""
        self.tower(host).backbone.load_adapter_state(state, mix=mix)

    def host_of(self, backbone: Backbone) -> str:
        """Return the name of the tower that hosts an edge device's SLM.

        Raises:
            KeyError: If no tower has the same backbone and adapted layers.
        """
        for host in self.hosts:
            if _kind(self.tower(host).backbone) == _kind(backbone):
                return host
        raise KeyError(f"none of {self.hosts} hosts {_kind(backbone)}")

    def represent(self, batch: Batch, *, source: RepresentationSource = "connector") -> Tensor:
        """Return the representation (B, D) that is sent to the clients as the anchor of CCL.

        Args:
            batch: Public samples.
            source: ``connector`` for the fused representation f, ``backbone`` for g, the readout of
                the LLM.
        """
        embeddings = self.embed(batch)
        return embeddings.fused if source == "connector" else self.tower().view(embeddings)


def _kind(backbone: Backbone) -> tuple[str, str | None, set[str]]:
    """Return what two adapters need to have in common to be averaged."""
    return backbone.settings.model, backbone.settings.revision, backbone.adapted_layers()
