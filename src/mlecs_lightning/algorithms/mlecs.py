"""ML-ECS: multimodal LLM edge-cloud collaboration (arXiv 2602.14107)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mlecs_lightning.algorithms.base import PassOrder, Steps
from mlecs_lightning.algorithms.fedavg import FedAvg
from mlecs_lightning.data.sampling import sequential_loader
from mlecs_lightning.federated import (
    Aggregation,
    EdgeLearner,
    Loaders,
    Message,
    RoundContext,
    Schema,
    ServerLearner,
    TensorField,
)
from mlecs_lightning.functional import VolumeContrast, volume_contrastive_loss
from mlecs_lightning.modules import EdgeModule, Losses, Objective, ServerModule
from mlecs_lightning.modules.server import RepresentationSource
from mlecs_lightning.nn import Embeddings
from mlecs_lightning.settings import LoraSettings
from mlecs_lightning.types import Batch

__all__ = ["MLECS", "Component"]

Component = Literal["ccl", "amt", "mma", "se_ccl"]
_COMPONENTS: tuple[Component, ...] = ("ccl", "amt", "mma", "se_ccl")


class MLECS(FedAvg):
    """The four components of ML-ECS, each of which can be left out.

    One round:

    1. The server sends each client its hosted adapter and, for the public ids that the client will
       use, its fused representations.
    2. ``ccl`` (edge, public data): L_LM + weight * L_vol, anchors = the received representations,
       vectors = the client's own z_m and f. Extractors are frozen if wanted. *Without: L_LM
       alone, no representations are sent.*
    3. ``amt`` (edge, private data): L_LM; extractors, connector and adapter train. *Without: no
        private pass.*
    4. The client sends its adapter, modality names and sample count.
    5. ``mma`` (server): adapters averaged with weights |M_j|. *Without: FedAvg's weights, the
        sample counts.*
    6. ``se_ccl`` (server, public data): the LLM and the hosted SLM with the averaged adapter train
       together and pull each other's vectors. *Without: the LLM trains alone.*

    Equations and what is ours in them: docs/method.md.
    """

    def __init__(
        self,
        *,
        components: list[Component] | None = None,
        temperature: float = 0.1,
        contrast_weight: float = 0.1,
        class_aware: bool = True,
        representation: RepresentationSource = "connector",
        weigh_by_samples: bool = False,
        freeze_extractors: bool = True,
        steps: Steps | None = None,
        order: PassOrder = "private_first",
        aggregation: Aggregation = "separate",
        adapter_mix: float = 1.0,
    ) -> None:
        """Set the method.

        Args:
            components: Those to use; all four by default.
            temperature: tau of the volume contrast.
            contrast_weight: lambda of L_vol.
            class_aware: Samples of a batch with the same target text are no negatives of each
                other.
            representation: Which of the server's representations goes down: f of its ``connector``,
                or g of its ``backbone``.
            weigh_by_samples: MMA weights |M_j| * n_j in place of |M_j|.
            freeze_extractors: Whether CCL leaves the extractors as they are, as in the reference
                configuration, where they are pretrained. Extractors that start from random weights
                need every step they can get.
            steps: See `FedAvg`.
            order: See `FedAvg`.
            aggregation: See `FedAvg`.
            adapter_mix: See `FedAvg`.

        Raises:
            ValueError: If a value is out of range.
        """
        super().__init__(steps=steps, order=order, aggregation=aggregation, adapter_mix=adapter_mix)
        self.components = frozenset(_COMPONENTS if components is None else components)
        unknown = self.components - set(_COMPONENTS)
        if unknown:
            raise ValueError(
                f"algorithm.init_args.components: {sorted(unknown)} are none of {list(_COMPONENTS)}"
            )
        if not temperature > 0 or contrast_weight < 0:
            raise ValueError(
                "algorithm.init_args: temperature must be positive and contrast_weight not "
                f"negative, got {temperature} and {contrast_weight}"
            )
        self.temperature = temperature
        self.contrast_weight = contrast_weight
        self.class_aware = class_aware
        self.representation: RepresentationSource = representation
        self.weigh_by_samples = weigh_by_samples
        self.freeze_extractors = freeze_extractors

    def faults(self, clients: Mapping[str, LoraSettings], *, batch_size: int) -> list[str]:
        """Say, beside FedAvg's faults, if a batch is too small for a contrast."""
        faults = super().faults(clients, batch_size=batch_size)
        contrasts = sorted(self.components & {"ccl", "se_ccl"})
        if contrasts and batch_size < 2:
            faults.append(
                f"data.init_args.batch_size is {batch_size}; components {contrasts} contrast the "
                "samples of a batch and need at least 2"
            )
        return faults

    # Edge -----------------------------------------------------------------------------------

    def downlink(self, server: ServerLearner, edge: EdgeModule) -> Schema:
        """Declare the adapter and, under CCL, representations with their ids."""
        schema = super().downlink(server, edge)
        if "ccl" not in self.components:
            return schema
        width = server.module.settings.connector.width
        return Schema(
            {**schema.tensors, "fused/anchors": TensorField((None, width))}, {"ids": tuple}
        )

    def broadcast(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> Iterable[tuple[str, Message]]:
        """Add the representations of the ids that each client will use in this round."""
        if "ccl" not in self.components:
            yield from super().broadcast(server, loaders, ctx)
            return
        anchors = self._represent(server, loaders)
        row = {sample: i for i, sample in enumerate(loaders.public.table.ids)}
        for client, message in super().broadcast(server, loaders, ctx):
            seed = ctx.seed_for(client, "public")
            ids = loaders.public.ids(self.steps.public, seed=seed)
            picked = anchors[[row[i] for i in ids]]
            yield client, Message({**message.tensors, "fused/anchors": picked}, {"ids": ids})

    @torch.no_grad()
    def _represent(self, server: ServerLearner, loaders: Loaders) -> Tensor:
        """Return the server's representations of all public samples, (N, D), once a round."""
        batches = sequential_loader(loaders.public.table, 256)
        parts = server.map(batches, partial(ServerModule.represent, source=self.representation))
        return torch.cat(parts).float().cpu()

    def public_pass(
        self, edge: EdgeLearner, loaders: Loaders, ctx: RoundContext, broadcast: Message | None
    ) -> dict[str, float]:
        """CCL: train towards the server's representations; frozen extractors stay as they are."""
        if "ccl" not in self.components:
            return super().public_pass(edge, loaders, ctx, broadcast)
        assert broadcast is not None
        ids = broadcast.scalars["ids"]
        assert isinstance(ids, tuple)
        anchors = broadcast.component("fused")["anchors"].to(edge.module.device)
        objective = partial(self.ccl, anchors=anchors, row={i: n for n, i in enumerate(ids)})
        seed = ctx.seed_for(edge.name, "public")
        with edge.module.frozen_extractors() if self.freeze_extractors else nullcontext():
            return edge.fit(
                loaders.public.take(self.steps.public, seed=seed), objective, stage="ccl"
            )

    def private_pass(
        self, edge: EdgeLearner, loaders: Loaders, ctx: RoundContext
    ) -> dict[str, float]:
        """AMT: train on private data."""
        if "amt" not in self.components:
            return {}
        return super().private_pass(edge, loaders, ctx)

    def ccl(
        self, edge: EdgeModule, batch: Batch, *, anchors: Tensor, row: dict[str, int]
    ) -> Losses:
        """L = L_LM + lambda * L_vol(server's representation; z_m, f)."""
        output = edge.read(batch)
        rows = torch.tensor([row[i] for i in batch.ids], device=anchors.device)
        contrast = self._contrast(anchors[rows], output.embeddings, batch)
        return {
            "loss": output.loss + self.contrast_weight * contrast.loss,
            "lm": output.loss,
            "volume": contrast.loss,
            "volume_diagonal": contrast.diagonal,
            "volume_off_diagonal": contrast.off_diagonal,
            "gram_det": contrast.gram_det,
        }

    # Server ---------------------------------------------------------------------------------

    def weight(self, message: Message) -> float:
        """MMA: w_j proportional to |M_j|, or to |M_j| * n_j."""
        samples = super().weight(message)
        if "mma" not in self.components:
            return samples
        modalities = message.scalars["modalities"]
        assert isinstance(modalities, tuple)
        return len(modalities) * (samples if self.weigh_by_samples else 1.0)

    def warmup_objective(self) -> Objective | None:
        """Warm up both towers, so that SE-CCL and the first broadcast start from something."""
        return self.both_towers if "se_ccl" in self.components else None

    def server_objective(self) -> Objective | None:
        """SE-CCL, or the LLM alone."""
        return self.se_ccl if "se_ccl" in self.components else None

    @staticmethod
    def both_towers(server: ServerModule, batch: Batch) -> Losses:
        """L_LM of the LLM and of the hosted SLM over the same features."""
        features, present = server.features(batch)
        text = (batch.instructions, batch.targets)
        llm = server.tower("llm")(features, present, *text)
        slm = server.tower("slm")(features, present, *text)
        return {"loss": llm.loss + slm.loss, "lm_llm": llm.loss, "lm_slm": slm.loss}

    def se_ccl(self, server: ServerModule, batch: Batch) -> Losses:
        """Both towers' L_LM and four volume terms, so that knowledge flows both ways.

        The first two pull each path's vectors towards the other model's view; the last two pull
        each model's view towards its own path's vectors (docs/method.md, SE-CCL).
        """
        features, present = server.features(batch)
        text = (batch.instructions, batch.targets)
        llm = server.tower("llm")(features, present, *text)
        slm = server.tower("slm")(features, present, *text)
        across = [
            self._contrast(slm.view.detach(), llm.embeddings, batch),
            self._contrast(llm.view.detach(), slm.embeddings, batch),
        ]
        within = [
            self._contrast(llm.view, _detached(llm.embeddings), batch),
            self._contrast(slm.view, _detached(slm.embeddings), batch),
        ]
        volume = sum((c.loss for c in (*across, *within)), llm.loss.new_zeros(()))
        return {
            "loss": llm.loss + slm.loss + self.contrast_weight * volume,
            "lm_llm": llm.loss,
            "lm_slm": slm.loss,
            "volume": volume,
            "volume_diagonal": across[0].diagonal,
            "volume_off_diagonal": across[0].off_diagonal,
            "gram_det": across[0].gram_det,
        }

    def _contrast(self, anchors: Tensor, embeddings: Embeddings, batch: Batch) -> VolumeContrast:
        vectors, present = embeddings.vectors()
        return volume_contrastive_loss(
            anchors,
            vectors,
            present=present,
            classes=_classes(batch, vectors.device, by_target=self.class_aware),
            temperature=self.temperature,
        )


def _classes(batch: Batch, device: torch.device, *, by_target: bool) -> Tensor:
    """Return (B,) equal numbers for samples that are no negatives of each other.

    Samples of the same target text, or at least of the same id.
    """
    names = batch.targets if by_target else batch.ids
    number = {name: n for n, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([number[name] for name in names], device=device)


def _detached(embeddings: Embeddings) -> Embeddings:
    return Embeddings(*(t.detach() for t in embeddings))
