"""ECLM: sub-models of a modular cloud model for devices with drifting data (arXiv 2311.11083)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from mlecs_lightning.algorithms.answers.training import MAX_SAMPLES
from mlecs_lightning.algorithms.base import LocalTraining, PassOrder, Steps
from mlecs_lightning.algorithms.eclm.ability import AbilityTraining
from mlecs_lightning.algorithms.eclm.derivation import Budget, Costs, InfeasibleBudgetError, derive
from mlecs_lightning.algorithms.eclm.drift import GateStatistics
from mlecs_lightning.algorithms.eclm.merge import (
    DeviceReport,
    MergedModules,
    MergeWeights,
    ModuleMerger,
    weights_of,
)
from mlecs_lightning.algorithms.eclm.models import (
    SIZES,
    CloudParts,
    DeviceParts,
    adapter_faults,
    count_costs,
    modular_of,
    pack,
    prototype_faults,
    prototype_names,
    public_importance,
    sizes,
    unpack,
)
from mlecs_lightning.algorithms.eclm.offline import OfflineStage
from mlecs_lightning.data.sampling import sequential_loader
from mlecs_lightning.errors import FaultList
from mlecs_lightning.extras import Need
from mlecs_lightning.modules import EdgeModule, Objective, ServerModule
from mlecs_lightning.rounds import ClientUpdate, EdgeLearner, Loaders, RoundContext, ServerLearner
from mlecs_lightning.settings import LoraSettings
from mlecs_lightning.wire import Message, ScalarField, Schema, TensorField

__all__ = ["ECLM"]


class ECLM(LocalTraining):
    """Each device gets the modules of the cloud's model that suit its data and fit its budget.

    The cloud's model is the hosted SLM, which also gives the server's answers. Its MLPs are divided
    into modules (groups of neurons). Each module has its own adapter, a slice of the MLP's LoRA.
    The rest of the LoRA (the trunk) is trained in the cloud and then fixed, so that the mean of the
    adapters that devices send for a module is the mean of its updates.

    Offline (the warm-up): the cloud trains the model and the module selector on public data, with
    gates. ``ability`` adds a second stage (`AbilityTraining`). Online, one round:

    1. The server sends each device its sub-model: which modules, and the adapters of those that the
       device lacks. The first time it also sends the prototype: extractors, connector, selector and
       trunk.
    2. The device measures the gates on its own data, tests them for drift, reduces its model to its
       budget, and tunes it.
    3. It sends its modules' adapters, the mean gates, its budget and its sample count.
    4. The server merges the modules one by one, weighted by importance and samples, and derives a
       new sub-model for each device whose data or budget has drifted.

    Equations, and which choices are ours: docs/method.md.
    """

    communicates, reads_words, one_model = True, False, True
    registers = ("samples",)

    def __init__(
        self,
        *,
        modules: int = 8,
        active: int = 4,
        bypass: bool = False,
        gate_weighted: bool = False,
        budget: Budget | None = None,
        budgets: dict[str, Budget] | None = None,
        gate_noise: float = 1.0,
        balance_weight: float = 0.1,
        modality_dropout: float = 0.3,
        ability: AbilityTraining | None = None,
        merge_weights: MergeWeights = "importance_samples",
        drift_significance: float = 1e-3,
        rederive: bool = True,
        refresh: bool = False,
        steps: Steps | None = None,
        order: PassOrder = "private_first",
    ) -> None:
        """Set the method.

        Args:
            modules: Number K of modules in each layer; must divide the width of the MLP.
            active: Fewest modules of a layer that a sample uses in the offline stage. Each draws a
                number between this and K, so that sub-models of all sizes work.
            bypass: Whether the selector can choose, as one more module of each layer, to bypass it
                (Nebula's residual modules), so that a sub-model may lack all others of a layer.
            gate_weighted: Whether a module counts with its gate instead of fully: offline with that
                of the sample, later with the mean over a device's data (in the cloud, public data).
            budget: Budget of each device; unlimited by default.
            budgets: Those of single clients by name, instead of ``budget``.
            gate_noise: Standard deviation of the noise on the gate logits.
            balance_weight: Weight of the load-balancing loss.
            modality_dropout: Probability that a sample lacks a modality offline; one is left.
            ability: The second offline stage; ``None``, the default, for none.
            merge_weights: Weights of the devices in the mean of a module: importance of it times
                samples (our choice), importance alone (Nebula), or samples alone (FedAvg).
            drift_significance: Significance level of the drift test; smaller values find less.
            rederive: Whether a sub-model is derived again after drift, not once and for all.
            refresh: Whether modules that other devices have changed are sent again to the devices
                that hold them. By default only modules that a device lacks are sent.
            steps: Optimiser steps of each pass. ``warmup`` is the offline stage. ``server`` is not
                used: online, the cloud merges and does not train.
            order: Which of a device's passes comes first.

        Raises:
            ValueError: If a value is out of range.
        """
        super().__init__(steps=steps, order=order)
        self.offline = OfflineStage(
            modules, active, gate_noise, balance_weight, modality_dropout, gate_weighted
        )
        faults = FaultList(self.offline.faults(key := "algorithm.init_args"))
        if not 0 < drift_significance < 1:
            faults.append(f"{key}.drift_significance must be in (0, 1), got {drift_significance}")
        faults.raise_any()
        self.modules, self.bypass, self.gate_weighted = modules, bypass, gate_weighted
        self._parts = {"bypass": bypass, "weighted": gate_weighted}
        self.budget, self.budgets = budget or Budget(), dict(budgets or {})
        self.ability, self.merge_weights = ability, merge_weights
        self.rederive, self.refresh, self.drift_significance = rederive, refresh, drift_significance
        self._prototypes: dict[str, dict[str, str]] = {}
        self._costs: dict[str, Costs] = {}

    # Compatible settings --------------------------------------------------------------------

    def needs(self) -> tuple[Need, ...]:
        """Name the packages that choose modules for a budget, and detect drift."""
        return (Need("algorithm: ECLM", "eclm"),)

    def faults(self, clients: Mapping[str, LoraSettings], *, batch_size: int) -> list[str]:
        """List adapters that differ or adapt more than MLPs, and budgets of unknown clients."""
        first, lora = next(iter(clients.items()))
        faults = [
            f"clients.{name}.lora is {other}, clients.{first} has {lora}; under ECLM all devices "
            "have parts of one model and need equal ones"
            for name, other in clients.items()
            if other != lora
        ]
        faults += adapter_faults(lora)
        return faults + [
            f"algorithm.init_args.budgets: there is no client {name!r}, only {list(clients)}"
            for name in self.budgets
            if name not in clients
        ]

    @classmethod
    def rebuilt(cls, arguments: Mapping[str, Any]) -> ECLM:
        """Return ECLM with as many modules."""
        bypass, weighted = (bool(arguments.get(key)) for key in ("bypass", "gate_weighted"))
        return cls(modules=arguments["modules"], active=1, bypass=bypass, gate_weighted=weighted)

    def build_server(self, module: ServerModule, clients: Iterable[str]) -> None:
        """Divide the hosted model into modules, let it answer, and add the selector."""
        CloudParts.add(module, self.modules, len(list(clients)), **self._parts)

    def build_edge(self, module: EdgeModule, modalities: Iterable[str]) -> None:
        """Prepare the edge for a sub-model."""
        DeviceParts.add(module, self.modules, tuple(modalities), **self._parts)

    def prepare_edge(self, client: str, module: EdgeModule) -> None:
        """Count the costs of a client's modules."""
        self._prototypes[client] = prototype_names(module)
        self._costs[client] = count_costs(module)

    def prepare(self, server: ServerLearner, clients: Mapping[str, EdgeModule]) -> None:
        """Check that prototypes and budgets fit."""
        self._server = server.module
        self._place = {name: j for j, name in enumerate(clients)}
        self._edges = dict(clients)
        state, faults = server.module.state_dict(), FaultList()
        for name, module in clients.items():
            faults += prototype_faults(name, module, self._prototypes[name], state)
            with faults.collecting():
                self._derive(name, torch.ones(modular_of(module).shape))
        faults.raise_any()

    def _budget(self, client: str, factor: float = 1.0) -> Budget:
        return self.budgets.get(client, self.budget).scaled(factor)

    def _derive(
        self, client: str, importance: Tensor, factor: float = 1.0, within: Tensor | None = None
    ) -> Tensor:
        """Return the sub-model (L, K) bool of a client, from importance and budget."""
        budget = self._budget(client, factor)
        try:
            return derive(importance[:, : self.modules], self._costs[client], budget, within=within)
        except InfeasibleBudgetError as error:
            key = "algorithm.init_args.budget"
            raise InfeasibleBudgetError(f"{key}: {client!r}: {error}") from error

    # Offline: the cloud alone ---------------------------------------------------------------

    def warmup_objective(self) -> Objective | None:
        """Return the loss of the offline stage."""
        return self.offline.loss

    def after_warmup(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> dict[str, float]:
        """Train the abilities of the modules, and weigh them, if that is set."""
        losses: dict[str, float] = {}
        if (ability := self.ability) is not None:
            stage = ability.prepare(server, loaders.public.table, self.offline)
            batches = loaders.public.take(ability.steps, seed=ctx.seed_for("server", "ability"))
            losses = server.fit(batches, stage.loss, stage="ability")
        if self.gate_weighted:
            seen = public_importance(server, loaders.public.table, server.module.modalities)
            modular_of(server.module).weigh(seen)
        return losses

    # Down -----------------------------------------------------------------------------------

    def downlink(self, edge: EdgeModule) -> Schema:
        """Declare the sub-model, the modules that the device lacks, and the prototype."""
        modular = modular_of(edge)
        return Schema(
            {
                "submodel/mask": TensorField(modular.shape, torch.bool),
                "modules/index": TensorField((None,), torch.int64),
                "modules/adapters": TensorField((None, modular.row_size)),
                "prototype/values": TensorField((None,)),  # empty except the first time
            }
        )

    def broadcast(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> Iterable[tuple[str, Message]]:
        """Send each device its sub-model, and the modules of it that the device lacks."""
        cloud, modular = CloudParts.of(server.module), modular_of(server.module)
        for client in ctx.participants:
            j, edge = self._place[client], self._edges[client]
            known = bool(cloud.informed[j])
            mask = cloud.assigned[j].cpu().bool()
            if not known:
                seen = public_importance(server, loaders.public.table, edge.modalities)
                mask = self._derive(client, seen)
            index = (mask & ~cloud.held[j].cpu().bool()).flatten().nonzero().flatten()
            prototype = torch.zeros(0) if known else pack(server.module, self._prototypes[client])
            modules = {"modules/index": index, "modules/adapters": modular.rows(index).float()}
            form = {"submodel/mask": mask, "prototype/values": prototype}
            yield client, Message(modules | form)

    # On the device --------------------------------------------------------------------------

    def uplink(self, edge: EdgeModule) -> Schema:
        """Declare the adapters of modules, the mean gates, budget, drift and sample count."""
        modular = modular_of(edge)
        return Schema(
            {
                "modules/index": TensorField((None,), torch.int64),
                "modules/adapters": TensorField((None, modular.row_size)),
                "gates/mean": TensorField((modular.shape[0], modular.shape[1] + self.bypass)),
            },
            {
                "budget": ScalarField(float, low=0.0),
                "drifted": ScalarField(int, low=0, high=1),
                "samples": ScalarField(int, low=1, high=MAX_SAMPLES),
            },
        )

    def figures(self) -> tuple[str, ...]:
        """Name the losses, and figures of the sub-model and the data."""
        return (*super().figures(), "drifted", "budget", *SIZES)

    def client_update(
        self, edge: EdgeLearner, loaders: Loaders, broadcast: Message | None, ctx: RoundContext
    ) -> ClientUpdate:
        """Load what was sent, measure the data, reduce the model to its budget, and tune it."""
        assert broadcast is not None
        assert loaders.private is not None
        modular = modular_of(edge.module)
        if len(prototype := broadcast.tensors["prototype/values"]):
            unpack(edge.module, self._prototypes[edge.name], prototype)
        batches = sequential_loader(loaders.private.table, 256)
        now = GateStatistics.of(torch.cat(edge.map(batches, DeviceParts.measure)))
        self._take_over(edge, broadcast, now.mean, loaders.resources)
        device = DeviceParts.of(edge.module)
        changed = device.compare(now, significance=self.drift_significance)
        losses = self.local_passes(edge, loaders, ctx, broadcast)
        message = Message(
            {
                "modules/index": modular.index().cpu(),
                "modules/adapters": modular.rows().float(),
                "gates/mean": now.mean,
            },
            {
                "budget": float(loaders.resources),
                "drifted": int(changed),
                "samples": len(loaders.private),
            },
        )
        facts = {"drifted": float(changed), "budget": float(loaders.resources)}
        return ClientUpdate(message, losses | facts | sizes(edge.module))

    def _take_over(
        self, edge: EdgeLearner, broadcast: Message, importance: Tensor, factor: float
    ) -> None:
        """Cut the model to the received sub-model, or further if the budget has shrunk."""
        modular = modular_of(edge.module)
        there, index = modular.mask.cpu(), broadcast.tensors["modules/index"]
        held = there if int(DeviceParts.of(edge.module).samples) else torch.zeros_like(there)
        received = torch.zeros_like(held).flatten().index_fill_(0, index, True).view_as(held)
        mask = broadcast.tensors["submodel/mask"] & (held | received)
        if not self._costs[edge.name].fit(mask, self._budget(edge.name, factor)):
            mask = self._derive(edge.name, importance, factor, within=mask)
        if not torch.equal(mask, there):
            modular.select(mask)
            for parameter in modular.own_parameters():
                edge.optimizer.state.pop(parameter, None)  # its moments are of other neurons
        here = mask.flatten()[index]
        modular.load_rows(index[here], broadcast.tensors["modules/adapters"][here])
        if self.gate_weighted:
            modular.weigh(importance)

    # Back on the cloud ----------------------------------------------------------------------

    def former(
        self, server: ServerLearner, message: Message, received: Message | None
    ) -> Mapping[str, Tensor]:
        """Return the cloud's version of the modules in an update."""
        modular, index = modular_of(server.module), message.tensors["modules/index"]
        if len(index) != len(message.tensors["modules/adapters"]):
            return {}  # the merger drops them all
        return {"modules/adapters": modular.rows(index.clamp(0, modular.mask.numel() - 1))}

    def aggregate(self, updates: Iterable[tuple[str, Message]], ctx: RoundContext) -> MergedModules:
        """Merge the modules one by one, weighted by importance and samples, as updates arrive."""
        cloud, modular = CloudParts.of(self._server), modular_of(self._server)
        merger = ModuleMerger(modular.mask.numel(), modular.row_size)
        reports: dict[str, DeviceReport] = {}
        for client, message in updates:
            j = self._place[client]
            gates = message.tensors["gates/mean"].clamp(0.0, 1.0)
            assigned = cloud.assigned[j] if cloud.informed[j] else modular.mask
            trained = merger.add(
                message.tensors["modules/index"],
                message.tensors["modules/adapters"],
                weights_of(
                    self.merge_weights, gates[:, : self.modules], message.scalars["samples"]
                ).flatten(),
                allowed=assigned.flatten().cpu().bool(),
            )
            reports[client] = DeviceReport(
                gates,
                trained.view(modular.shape),
                # In float32, as `CloudParts.budget` keeps it: the two are compared.
                float(torch.tensor(message.scalars["budget"], dtype=torch.float32)),
                bool(message.scalars["drifted"]),
            )
        return merger.result(reports)

    def server_update(
        self,
        server: ServerLearner,
        aggregate: MergedModules | None,
        loaders: Loaders,
        ctx: RoundContext,
    ) -> dict[str, float]:
        """Load the merged modules, and derive sub-models where data or budget have drifted."""
        if aggregate is None:
            return {}
        cloud, modular = CloudParts.of(server.module), modular_of(server.module)
        modular.load_rows(aggregate.index, aggregate.rows)
        changed = aggregate.contributors.view(modular.shape)  # by so many devices
        derived: dict[str, float] = {}
        for client, j in self._place.items():
            report = aggregate.reports.get(client)
            held = cloud.held[j].bool().cpu() if report is None else report.trained
            cloud.held[j] = held & (changed <= int(report is not None)) if self.refresh else held
            if report is None:
                continue
            moved = report.drifted or report.budget != float(cloud.budget[j])
            due = not cloud.informed[j] or (self.rederive and moved)
            derived[f"derived/{client}"] = float(due)
            cloud.importance[j], cloud.budget[j] = report.gates, report.budget
            cloud.informed[j] = 1
            if due:
                cloud.assigned[j] = report.trained
                # No device can have trained under a budget that nothing fits: ignore such a claim.
                with suppress(InfeasibleBudgetError):
                    cloud.assigned[j] = self._derive(client, report.gates, report.budget)
        counts = {"modules/derived": sum(derived.values())} | derived
        return {"modules/merged": float(len(aggregate.index))} | counts
