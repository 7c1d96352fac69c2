"""ML-ECS: multimodal LLM edge-cloud collaboration (arXiv 2602.14107)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from mlecs_lightning.aggregation import GroupedAdapters
from mlecs_lightning.algorithms.answers import AnsweredAdapters
from mlecs_lightning.algorithms.fedavg import FedAvg
from mlecs_lightning.algorithms.mlecs.alignment import alignment_of, unaligned
from mlecs_lightning.algorithms.mlecs.checks import addition_faults
from mlecs_lightning.algorithms.mlecs.objectives import (
    AMT_LOSSES,
    CCL_LOSSES,
    Agreed,
    Alignment,
    Objectives,
)
from mlecs_lightning.algorithms.mlecs.representations import (
    RepresentationMean,
    Representations,
    RepresentedAdapters,
)
from mlecs_lightning.algorithms.mlecs.sensors import SensorDropout
from mlecs_lightning.data import SampleTable
from mlecs_lightning.data.sampling import sequential_loader
from mlecs_lightning.errors import FaultList
from mlecs_lightning.modules import EdgeModule, Objective, ServerModule
from mlecs_lightning.modules.server import RepresentationSource
from mlecs_lightning.rounds import (
    ClientUpdate,
    EdgeLearner,
    Loaders,
    RoundContext,
    ServerLearner,
    TrainingPass,
)
from mlecs_lightning.settings import LoraSettings
from mlecs_lightning.wire import Message, Schema, TensorField
from mlecs_lightning.wire.messages import ScalarField

__all__ = ["MLECS", "Component"]

Component = Literal["ccl", "amt", "mma", "se_ccl"]
Anchors = Literal["all", "sensed"]
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
        fused_weight: float = 0.0,
        sensor_dropout: float = 0.0,
        anchors: Anchors = "all",
        representations: Representations | None = None,
        slm_trains_extractors: bool = True,
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
                over all z_m and f (``volume``), over the z_m alone (``modalities``), over f alone
                (``fused``; the single modalities need not agree), or feature distillation, 1 -
                cos(f, anchor) (``cosine``).
            private_contrast: Whether AMT minimises the contrast as well. The anchor of a private
                sample is the mean direction of the received representations of public samples with
                the same target text; samples without such an anchor are left out. Nothing more is
                sent (our choice).
            fused_weight: Weight mu of 1 - cos(f, anchor), which is added to the loss of CCL and of
                the private contrast, beside the volume of ``alignment``. In SE-CCL it draws f of
                the hosted SLMs to what the server sends. A volume alone does not put f where the
                anchor is: it vanishes as soon as the anchor lies in the span of the vectors, or
                opposite to one.
            sensor_dropout: Probability that a public sample lacks a modality when the server trains
                on it, in the warm-up and in SE-CCL; one is always left. In [0, 1).
            anchors: Of which inputs of a sample the server computes the representations that it
                sends: ``all``, or only those of the client's own modalities (``sensed``), which the
                client can reach. The server should then know incomplete samples: see
                ``sensor_dropout``.
            representations: How clients send their representations of the public samples, and how
                SE-CCL uses them; see `Representations`. By default they do not. Needs the
                components ``ccl`` and ``se_ccl``.
            slm_trains_extractors: Whether the hosted SLMs train the server's extractors together
                with the LLM, in the warm-up and in SE-CCL. If not, the extractors follow the LLM
                alone (our choice).
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
        faults += addition_faults(
            self.components,
            alignment=alignment,
            fused_weight=fused_weight,
            sensor_dropout=sensor_dropout,
            represents=representations is not None,
        )
        if weigh_by_samples and options.get("weights") == "equal":
            faults.append(
                "algorithm.init_args.weigh_by_samples needs weights 'samples', got 'equal'"
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
        self.fused_weight = fused_weight
        self.sensor_dropout = sensor_dropout
        self.anchors: Anchors = anchors
        self.representations = representations
        self.slm_trains_extractors = slm_trains_extractors
        self._public_samples = 0
        self.objectives = Objectives(
            temperature=temperature,
            contrast_weight=contrast_weight,
            class_aware=class_aware,
            alignment=alignment,
            freeze_extractors=freeze_extractors,
            fused_weight=fused_weight,
            representation=representation,
            slm_trains_extractors=slm_trains_extractors,
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

    def downlink(self, edge: EdgeModule) -> Schema:
        """Declare the adapter and, with CCL, representations and their ids."""
        schema = super().downlink(edge)
        if "ccl" not in self.components:
            return schema
        width = edge.settings.connector.width
        return Schema(
            {**schema.tensors, "fused/anchors": TensorField((None, width))},
            {**schema.scalars, "ids": ScalarField(tuple)},
        )

    def uplink(self, edge: EdgeModule) -> Schema:
        """Declare FedAvg's update and, if they are sent, the client's representations."""
        schema = super().uplink(edge)
        if self.representations is None:
            return schema
        more = Representations.schema(edge.settings.connector.width)
        return Schema({**schema.tensors, **more.tensors}, {**schema.scalars, **more.scalars})

    def prepare(self, server: ServerLearner, clients: Mapping[str, EdgeModule]) -> None:
        """Read the clients' modalities as well."""
        super().prepare(server, clients)
        self._modalities = {name: module.modalities for name, module in clients.items()}

    def broadcast(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> Iterable[tuple[str, Message]]:
        """Add the representations of the public samples that each client will use."""
        self._public_samples = len(loaders.public.table)
        if "ccl" not in self.components:
            yield from super().broadcast(server, loaders, ctx)
            return
        everything = tuple(loaders.public.table.modalities)
        known: dict[tuple[str, ...], Tensor] = {}
        row = {sample: i for i, sample in enumerate(loaders.public.table.ids)}
        for client, message in super().broadcast(server, loaders, ctx):
            seed = ctx.seed_for(client, "public")
            ids = loaders.public.ids(self.steps.public, seed=seed)
            seen = self._modalities[client] if self.anchors == "sensed" else everything
            if seen not in known:
                known[seen] = self._represent(server, loaders.public.table.restrict(seen))
            picked = known[seen][[row[i] for i in ids]]
            tensors = {**message.tensors, "fused/anchors": picked}
            yield client, Message(tensors, {**message.scalars, "ids": ids})

    @torch.no_grad()
    def _represent(self, server: ServerLearner, table: SampleTable) -> Tensor:
        """Return the server's representations of samples, (N, D)."""
        batches = sequential_loader(table, 256)
        parts = server.map(batches, partial(ServerModule.represent, source=self.representation))
        return torch.cat(parts).float().cpu()

    def client_update(
        self, edge: EdgeLearner, loaders: Loaders, broadcast: Message | None, ctx: RoundContext
    ) -> ClientUpdate:
        """Add the client's representations to FedAvg's update, if they are sent."""
        update = super().client_update(edge, loaders, broadcast, ctx)
        if self.representations is None:
            return update
        assert update.message is not None
        tensors, scalars = self.representations.sent(edge, loaders.public.table)
        message = update.message
        return update._replace(
            message=Message({**message.tensors, **tensors}, {**message.scalars, **scalars})
        )

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

    def refusals(self, server: ServerLearner, message: Message) -> list[str]:
        """Return what is wrong with a client's answers and representations."""
        refusals = super().refusals(server, message)
        if self.representations is None:
            return refusals
        return refusals + Representations.faults(message, samples=self._public_samples)

    def aggregate(
        self, updates: Iterable[tuple[str, Message]], ctx: RoundContext
    ) -> GroupedAdapters:
        """Average the representations beside the adapters, as they arrive."""
        if self.representations is None:
            return super().aggregate(updates, ctx)
        mean = RepresentationMean()
        averaged = super().aggregate(mean.watch(updates), ctx)
        return RepresentedAdapters(
            clients=averaged.clients,
            error=averaged.error,
            adapters=averaged.adapters,
            votes=averaged.votes if isinstance(averaged, AnsweredAdapters) else (),
            agreed=mean.result(),
        )

    def warmup_objective(self) -> Objective | None:
        """Warm up all towers, so that SE-CCL and the first broadcast start from trained models."""
        both = self.objectives.all_towers if "se_ccl" in self.components else None
        return self._with_dropout(both)

    def server_objective(self) -> Objective | None:
        """SE-CCL, or the LLM alone."""
        return self._with_dropout(self.objectives.se_ccl if "se_ccl" in self.components else None)

    def objective_after(
        self,
        aggregate: Any,  # noqa: ANN401 - as in the base class
        loaders: Loaders,
    ) -> Objective | None:
        """SE-CCL with what the clients agree on, if they have sent representations."""
        agreed = aggregate.agreed if isinstance(aggregate, RepresentedAdapters) else None
        if agreed is None or self.representations is None:
            return self.server_objective()
        row = {sample: n for n, sample in enumerate(loaders.public.table.ids)}
        target = Agreed(agreed, row, self.representations.weight)
        return self._with_dropout(partial(self.objectives.se_ccl, agreed=target))

    def _with_dropout(self, objective: Objective | None) -> Objective | None:
        if not self.sensor_dropout:
            return objective
        return SensorDropout(self.sensor_dropout, objective)

    # The end of a run -----------------------------------------------------------------------

    def summary(self, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Return the last cosine of f with its anchor, of each client and of the server."""
        return alignment_of(history)

    def remarks(self, history: Sequence[Mapping[str, float]]) -> list[str]:
        """Say which clients are not aligned although their volumes are small."""
        return unaligned(history)


def _means(rows: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return for each name the mean of its rows (N, D), each normalised to length 1."""
    units = torch.nn.functional.normalize(rows, dim=-1)
    members: dict[str, list[int]] = {}
    for n, name in enumerate(names):
        if not name:
            continue  # a sample of unknown class
        members.setdefault(name, []).append(n)
    return {name: units[each].mean(dim=0) for name, each in members.items()}
