"""What the benchmark of ECLM compares it with, and how it is judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mlecs_lightning import ECLM, MLECS, FedAvg, URFall
from mlecs_lightning.aggregation import AdapterAggregate, AdapterAggregator
from mlecs_lightning.algorithms import LocalTraining
from mlecs_lightning.algorithms.eclm.merge import MergedModules
from mlecs_lightning.algorithms.eclm.models import CloudParts, DeviceParts, modular_of
from mlecs_lightning.algorithms.eclm.offline import without_some_modalities
from mlecs_lightning.algorithms.eclm.selector import ModuleSelector
from mlecs_lightning.data import SampleTable
from mlecs_lightning.data.base import Split
from mlecs_lightning.modules import EdgeModule, MultimodalLM, Objective, ServerModule
from mlecs_lightning.nn.connector import Connector
from mlecs_lightning.rounds import ClientUpdate, EdgeLearner, Loaders, RoundContext, ServerLearner
from mlecs_lightning.types import Batch
from mlecs_lightning.wire import Message, ScalarField, Schema, TensorField

WARMUP = 200
"""Steps on the public data before the first round: of the cloud, or of each device."""


class Judged(URFall):
    """UR Fall whose validation split is the test split: what the clients are judged on."""

    def private(
        self, client: str, split: Split = "train", *, round: int | None = None
    ) -> SampleTable:
        """See `FederatedDataModule`."""
        return super().private(client, "test" if split == "val" else split, round=round)


class FullModel(LocalTraining):
    """Full-model fine-tuning: every device trains all weights, and all of them travel (FedAvg).

    It starts from the cloud, as ECLM does: extractors, connector and language model trained on the
    public data, with modalities left out as there.
    """

    communicates = True

    def build_server(self, module: ServerModule, clients: Iterable[str]) -> None:
        """Let all weights of the hosted model train; it answers."""
        module.first = "slm"
        unfreeze(module)

    def build_edge(self, module: EdgeModule, modalities: Iterable[str]) -> None:
        """Let all weights train; give the connector the cloud's columns."""
        widths = {m: int(e.out_features) for m, e in module.extractors.items()}
        tower = module.tower()
        tower.connector = Connector(
            widths,
            tower.backbone.hidden_size,
            settings=module.settings.connector,
            slots=tuple(modalities),
            tokens=tower.connector.tokens,
        )
        unfreeze(module)

    def prepare(self, server: ServerLearner, clients: Mapping[str, EdgeModule]) -> None:
        """Remember the devices' modules, for the names of their weights."""
        self._edges = dict(clients)

    def warmup_objective(self) -> Objective | None:
        """L_LM of the hosted model, with modalities left out."""

        def objective(server: ServerModule, batch: Batch) -> dict[str, Tensor]:
            if server.training:
                batch = without_some_modalities(batch, 0.3)  # ECLM's default
            return {"loss": server.mean_loss(server.read(batch))}

        return objective

    def downlink(self, edge: EdgeModule) -> Schema:
        """Declare the whole model."""
        return Schema(_whole(edge))

    def uplink(self, edge: EdgeModule) -> Schema:
        """Declare the whole model and the number of samples."""
        return Schema(_whole(edge), {"samples": ScalarField(int, low=1)})

    def broadcast(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> Iterator[tuple[str, Message]]:
        """Send each device all weights that it has a place for."""
        state = server.module.state_dict()
        for client in ctx.participants:
            names = self._edges[client].trainable_state()
            yield client, Message({f"model/{k}": state[k].clone() for k in names})

    def client_update(
        self, edge: EdgeLearner, loaders: Loaders, broadcast: Message | None, ctx: RoundContext
    ) -> ClientUpdate:
        """Take all weights over, train, send all back."""
        assert broadcast is not None
        edge.module.load_trainable_state(broadcast.component("model"))
        losses = self.local_passes(edge, loaders, ctx, broadcast)
        tensors = {f"model/{k}": t for k, t in edge.module.trainable_state().items()}
        return ClientUpdate(Message(tensors, {"samples": len(loaders.private or ())}), losses)

    def aggregate(
        self, updates: Iterable[tuple[str, Message]], ctx: RoundContext
    ) -> AdapterAggregate:
        """Average by samples; a weight that only some devices have, over those."""
        total = AdapterAggregator("freeze_a", rank=1, scaling=1.0)
        for _, message in updates:
            weight = float(message.scalars["samples"])
            total.add(message.component("model"), weight=weight, scaling=1.0)
        return total.result()

    @torch.no_grad()
    def server_update(
        self,
        server: ServerLearner,
        aggregate: AdapterAggregate | None,
        loaders: Loaders,
        ctx: RoundContext,
    ) -> dict[str, float]:
        """Host the average."""
        state = server.module.state_dict()
        for name, value in (aggregate.adapter if aggregate else {}).items():
            state[name].copy_(value)
        return {}


class Prepared(LocalTraining):
    """Lets devices train on the public data before their first round, as long as ECLM's cloud does.

    Devices of FedAvg and ML-ECS begin with weights of their own; without this a comparison would
    say who had a start. They begin every drift alike, so what they learned is kept by seed.
    """

    _learned: ClassVar[dict[tuple[int, str], dict[str, Any]]] = {}

    def local_passes(
        self,
        edge: EdgeLearner,
        loaders: Loaders,
        ctx: RoundContext,
        broadcast: Message | None = None,
    ) -> dict[str, float]:
        """In round 0 prepare, then take the passes."""
        key = (ctx.seed, edge.name)
        if ctx.round == 0:
            if key not in self._learned:
                batches = loaders.public.take(WARMUP, seed=ctx.seed_for(edge.name, "prepare"))
                edge.fit(batches, stage="prepare")
                self._learned[key] = edge.state_dict()
            edge.load_state_dict(self._learned[key])
            torch.manual_seed(ctx.seed_for(edge.name, "prepared"))
        return super().local_passes(edge, loaders, ctx, broadcast)


class PreparedFedAvg(Prepared, FedAvg):
    """FedAvg of prepared devices."""


class PreparedMLECS(Prepared, MLECS):
    """ML-ECS of prepared devices."""


class LocalAdaptation(ECLM):
    """Every device tunes its sub-model for itself; the cloud merges nothing."""

    def aggregate(self, updates: Iterable[tuple[str, Message]], ctx: RoundContext) -> MergedModules:
        """Keep what the devices report of their data, and none of their modules."""
        merged = super().aggregate(updates, ctx)
        return replace(merged, index=merged.index[:0], rows=merged.rows[:0])


class HeteroFL(ECLM):
    """Nested widths (arXiv 2010.01264): a device has the first neurons of each MLP, as many as fit.

    It differs from ECLM in the choice alone: a selector that always prefers the first modules takes
    the place of the trained one, in the warm-up (so that the cloud's model works at every width)
    and on the devices. Modules are averaged by samples.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Set what makes it HeteroFL; see `ECLM`."""
        fixed = {"gate_noise": 0.0, "balance_weight": 0.0, "merge_weights": "samples"}
        super().__init__(**{**kwargs, **fixed})

    def build_server(self, module: ServerModule, clients: Iterable[str]) -> None:
        """Prefer the first modules."""
        super().build_server(module, clients)
        CloudParts.of(module).selector = _InOrder(modular_of(module).shape)

    def build_edge(self, module: EdgeModule, modalities: Iterable[str]) -> None:
        """Prefer the first modules."""
        super().build_edge(module, modalities)
        DeviceParts.of(module).gates.selector = _InOrder(modular_of(module).shape)


class _InOrder(ModuleSelector):
    """Gate logits 0, -1, -2, ... of the modules of each layer, whatever the sample."""

    def __init__(self, shape: tuple[int, int]) -> None:
        nn.Module.__init__(self)
        self.shape = shape

    def forward(self, fused: Tensor) -> Tensor:
        order = -torch.arange(self.shape[1], dtype=torch.float32, device=fused.device)
        return order.expand(len(fused), *self.shape)


def _whole(edge: EdgeModule) -> dict[str, TensorField]:
    state = edge.trainable_state()
    return {f"model/{k}": TensorField(tuple(t.shape), t.dtype) for k, t in state.items()}


def unfreeze(module: MultimodalLM) -> None:
    """Give a module's SLM weights of its own that train; tied ones stay tied."""
    lm, own = module.tower("slm").backbone.lm, dict[int, nn.Parameter]()
    for part in lm.modules():
        for name, p in list(part.named_parameters(recurse=False)):
            if not p.requires_grad:
                fresh = own.setdefault(id(p), nn.Parameter(p.detach().clone()))
                setattr(part, name, fresh)
    module._ddp_params_and_buffers_to_ignore = sorted(module._frozen_names())
