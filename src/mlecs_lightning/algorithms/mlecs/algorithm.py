"""ML-ECS: multimodal LLM edge-cloud collaboration (arXiv 2602.14107)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from mlecs_lightning.algorithms.fedavg import FedAvg
from mlecs_lightning.algorithms.mlecs.objectives import (
    AMT_LOSSES,
    CCL_LOSSES,
    Alignment,
    Objectives,
    both_towers,
)
from mlecs_lightning.data.sampling import sequential_loader
from mlecs_lightning.errors import FaultList
from mlecs_lightning.modules import EdgeModule, Objective, ServerModule
from mlecs_lightning.modules.server import RepresentationSource
from mlecs_lightning.rounds import EdgeLearner, Loaders, RoundContext, ServerLearner, TrainingPass
from mlecs_lightning.settings import LoraSettings
from mlecs_lightning.wire import Message, Schema, TensorField
from mlecs_lightning.wire.messages import ScalarField

__all__ = ["MLECS", "Component"]

Component = Literal["ccl", "amt", "mma", "se_ccl"]
_COMPONENTS: tuple[Component, ...] = ("ccl", "amt", "mma", "se_ccl")


class MLECS(FedAvg):
    """ML-ECS with its four components, each of which can be left out.

    One round:

    1. The server sends each client the hosted adapter and the server's fused representations of
       the public samples that the client will use.
    2. ``ccl`` (edge, public data): L_LM + lambda * L_vol; the anchors are the received
       representations, the vectors are the client's z_m and f. Optionally the extractors are
       frozen. *Without: L_LM alone, and no representations are sent.*
    3. ``amt`` (edge, private data): L_LM; extractors, connector and adapter train. *Without: no
       private pass.*
    4. The client sends its adapter, the names of its modalities and its sample count.
    5. ``mma`` (server): adapters are averaged with weights |M_j|. *Without: with FedAvg's weights,
       the sample counts.*
    6. ``se_ccl`` (server, public data): the LLM and the hosted SLM with the averaged adapter train
       together and align their vectors. *Without: the LLM trains alone.*

    Equations, and which choices are ours: docs/method.md.
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
        alignment: Alignment = "volume",
        freeze_extractors: bool = True,
        private_contrast: bool = False,
        **options: Any,
    ) -> None:
        """Set the method.

        Args:
            components: The components to use; all four by default.
            temperature: Temperature tau of the volume contrast.
            contrast_weight: Weight lambda of L_vol.
            class_aware: Whether samples of a batch with the same target text are excluded from each
                other's negatives.
            representation: Which of its representations the server sends: f of its ``connector``,
                or g of its ``backbone``.
            weigh_by_samples: Whether MMA weighs by |M_j| * n_j instead of |M_j|.
            freeze_extractors: Whether CCL freezes the extractors, as in the reference
                configuration, where they are pretrained. Extractors with random initial weights
                need all the training they can get.
            alignment: What aligns a client with the server's representations: the volume contrast
                over all z_m and f (``volume``), over f alone (``fused``; the single modalities
                need not agree), or feature distillation, 1 - cos(f, anchor) (``cosine``).
            private_contrast: Whether AMT minimises the contrast as well. The anchor of a private
                sample is the mean direction of the received representations of public samples with
                the same target text; samples without such an anchor are left out. Nothing more is
                sent (our choice).
            **options: See `FedAvg`.

        Raises:
            ValueError: If a value is out of range.
        """
        faults = FaultList()
        with faults.collecting():
            super().__init__(**options)
        self.components = frozenset(_COMPONENTS if components is None else components)
        unknown = self.components - set(_COMPONENTS)
        if unknown:
            faults.append(
                f"algorithm.init_args.components: {sorted(unknown)} are none of {list(_COMPONENTS)}"
            )
        if not temperature > 0 or not contrast_weight >= 0:
            faults.append(
                "algorithm.init_args: temperature must be positive and contrast_weight not "
                f"negative, got {temperature} and {contrast_weight}"
            )
        faults.raise_any()
        self.representation: RepresentationSource = representation
        self.weigh_by_samples = weigh_by_samples
        self.private_contrast = private_contrast
        # Kept under their own names as well: a checkpoint compares the arguments.
        self.temperature = temperature
        self.contrast_weight = contrast_weight
        self.class_aware = class_aware
        self.alignment: Alignment = alignment
        self.freeze_extractors = freeze_extractors
        self.objectives = Objectives(
            temperature=temperature,
            contrast_weight=contrast_weight,
            class_aware=class_aware,
            alignment=alignment,
            freeze_extractors=freeze_extractors,
        )

    def faults(self, clients: Mapping[str, LoraSettings], *, batch_size: int) -> list[str]:
        """Add to FedAvg's faults a batch that is too small for a contrast."""
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
        """Declare the adapter and, with CCL, representations and their ids."""
        schema = super().downlink(server, edge)
        if "ccl" not in self.components:
            return schema
        width = server.module.settings.connector.width
        return Schema(
            {**schema.tensors, "fused/anchors": TensorField((None, width))},
            {**schema.scalars, "ids": ScalarField(tuple)},
        )

    def broadcast(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> Iterable[tuple[str, Message]]:
        """Add the representations of the public samples that each client will use."""
        if "ccl" not in self.components:
            yield from super().broadcast(server, loaders, ctx)
            return
        anchors = self._represent(server, loaders)
        row = {sample: i for i, sample in enumerate(loaders.public.table.ids)}
        for client, message in super().broadcast(server, loaders, ctx):
            seed = ctx.seed_for(client, "public")
            ids = loaders.public.ids(self.steps.public, seed=seed)
            picked = anchors[[row[i] for i in ids]]
            tensors = {**message.tensors, "fused/anchors": picked}
            yield client, Message(tensors, {**message.scalars, "ids": ids})

    @torch.no_grad()
    def _represent(self, server: ServerLearner, loaders: Loaders) -> Tensor:
        """Return the server's representations of all public samples, (N, D)."""
        batches = sequential_loader(loaders.public.table, 256)
        parts = server.map(batches, partial(ServerModule.represent, source=self.representation))
        return torch.cat(parts).float().cpu()

    def public_pass(
        self, edge: EdgeLearner, loaders: Loaders, ctx: RoundContext, broadcast: Message | None
    ) -> TrainingPass:
        """CCL: align with the server's representations."""
        usual = super().public_pass(edge, loaders, ctx, broadcast)
        if "ccl" not in self.components:
            return usual
        anchors, ids = self._received(edge, broadcast)
        row = {sample: n for n, sample in enumerate(ids)}
        objective = partial(self.objectives.ccl, anchors=anchors, row=row)
        return TrainingPass("ccl", usual.batches, objective)

    def private_pass(
        self, edge: EdgeLearner, loaders: Loaders, ctx: RoundContext, broadcast: Message | None
    ) -> TrainingPass | None:
        """AMT: train on private data."""
        if "amt" not in self.components:
            return None
        usual = super().private_pass(edge, loaders, ctx, broadcast)
        if usual is None or not ("ccl" in self.components and self.private_contrast):
            return usual
        anchors, ids = self._received(edge, broadcast)
        table = loaders.public.table
        said = dict(zip(table.ids, table.targets, strict=True))
        prototypes = _means(anchors, [said[sample] for sample in ids])
        return usual._replace(objective=partial(self.objectives.amt, prototypes=prototypes))

    def losses(self) -> dict[str, tuple[str, ...]]:
        """Name the losses of CCL, AMT and plain passes."""
        return {
            **super().losses(),
            "ccl": CCL_LOSSES,
            "private": AMT_LOSSES,
        }

    @staticmethod
    def _received(edge: EdgeLearner, broadcast: Message | None) -> tuple[Tensor, tuple[str, ...]]:
        """Return the received representations (N, D) and the ids of their public samples."""
        assert broadcast is not None
        ids = broadcast.scalars["ids"]
        assert isinstance(ids, tuple)
        return broadcast.component("fused")["anchors"].to(edge.module.device), ids

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
        """Warm up all towers, so that SE-CCL and the first broadcast start from trained models."""
        return both_towers if "se_ccl" in self.components else None

    def server_objective(self) -> Objective | None:
        """SE-CCL, or the LLM alone."""
        return self.objectives.se_ccl if "se_ccl" in self.components else None


def _means(rows: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return for each name the mean of its rows (N, D), each normalised to length 1."""
    units = torch.nn.functional.normalize(rows, dim=-1)
    members: dict[str, list[int]] = {}
    for n, name in enumerate(names):
        if not name:
            continue  # a sample of unknown class
        members.setdefault(name, []).append(n)
    return {name: units[each].mean(dim=0) for name, each in members.items()}
