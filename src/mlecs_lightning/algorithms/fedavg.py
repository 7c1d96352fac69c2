"""FedAvg over LoRA adapters (arXiv 1602.05629)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from mlecs_lightning.aggregation import AdapterAggregator, Aggregation, GroupedAdapters
from mlecs_lightning.aggregation.adapters import first_ranks, fit_rank, over_ranks
from mlecs_lightning.algorithms.answers import AnsweredAdapters, Answers, Labels
from mlecs_lightning.algorithms.answers.training import AnsweringTraining, Weights, told_samples
from mlecs_lightning.algorithms.base import PassOrder, Steps
from mlecs_lightning.errors import FaultList
from mlecs_lightning.modules import EdgeModule, ServerModule
from mlecs_lightning.rounds import ClientUpdate, EdgeLearner, Loaders, RoundContext, ServerLearner
from mlecs_lightning.settings import LoraSettings
from mlecs_lightning.wire import Message, Schema
from mlecs_lightning.wire.messages import adapter_fields

__all__ = ["FedAvg"]


class FedAvg(AnsweringTraining):
    """Clients send adapters and receive their mean, weighted by the number of private samples.

    Extractors, connectors and optimisers never leave the devices, so that clients with different
    sensors can take part.
    """

    def __init__(
        self,
        *,
        steps: Steps | None = None,
        order: PassOrder = "private_first",
        aggregation: Aggregation = "separate",
        adapter_mix: float = 1.0,
        trim: float = 0.1,
        answers: Answers | None = None,
        weights: Weights = "samples",
    ) -> None:
        """Set passes and aggregation.

        Args:
            steps: Optimiser steps of each pass.
            order: Which of a client's passes comes first.
            aggregation: How adapters are averaged. ``separate`` averages A and B separately (the
                common way). ``stack`` averages the updates B A exactly, in a hosted adapter whose
                rank is the sum of the clients' ranks (FLoRA, arXiv 2409.05976); ``svd`` truncates
                that to the largest client rank. ``freeze_a`` trains and sends B alone (FFA-LoRA,
                arXiv 2403.12313). ``dimensions`` averages each rank dimension over the clients
                that have it (FediLoRA, arXiv 2509.06984). ``median`` and ``trimmed_mean``
                withstand a minority of hostile or broken clients (arXiv 1803.01498): they treat A
                and B separately, coordinate by coordinate, and weigh all clients equally, because a
                client claims its own weight; the server then keeps all adapters of a round in
                memory. Ranks may differ under ``stack``, ``svd`` and ``dimensions``.
            adapter_mix: Share of the received adapter in the adapter that a client starts a round
                with; the rest is the client's own adapter at the end of its last round. In its
                first round a client starts with the received adapter alone.
            trim: Share of a round's clients that ``trimmed_mean`` drops at each end, rounded down
                to whole clients. In a round with fewer clients than 1 / ``trim`` it drops none.
            answers: How clients and server exchange answers to the public samples without a
                target; see `Answers`. By default they do not.
            weights: Whether clients send the number of their private samples as their weight
                (``samples``), or all have one weight and the number stays with them (``equal``).

        Raises:
            ValueError: If ``adapter_mix`` is outside (0, 1] or ``trim`` outside (0, 0.5).
        """
        super().__init__(steps=steps, order=order, answers=answers, weights=weights)
        faults = FaultList()
        if not 0 < adapter_mix <= 1:
            faults.append(f"algorithm.init_args.adapter_mix must lie in (0, 1], got {adapter_mix}")
        if not 0 < trim < 0.5:
            faults.append(f"algorithm.init_args.trim must lie in (0, 0.5), got {trim}")
        faults.raise_any()
        self.aggregation: Aggregation = aggregation
        self.adapter_mix = adapter_mix
        self.trim = trim

    # Compatible adapters --------------------------------------------------------------------

    def faults(self, clients: Mapping[str, LoraSettings], *, batch_size: int) -> list[str]:
        """List the adapters that cannot be averaged with the others."""
        first, lora = next(iter(clients.items()))
        faults: list[str] = []
        if self.aggregation not in ("stack", "svd", "dimensions"):
            faults += [
                f"clients.{name}.lora has r={other.r}, alpha={other.alpha}, clients.{first} has "
                f"r={lora.r}, alpha={lora.alpha}; algorithm.init_args.aggregation "
                f"{self.aggregation!r} needs equal ones, 'stack', 'svd' and 'dimensions' do not"
                for name, other in clients.items()
                if (other.r, other.alpha) != (lora.r, lora.alpha)
            ]
        # It would silently be a plain mean, which withstands nothing.
        if self.aggregation == "trimmed_mean" and int(self.trim * len(clients)) == 0:
            faults.append(
                f"algorithm.init_args.trim is {self.trim}: of {len(clients)} clients it drops "
                f"none; 'trimmed_mean' needs at least 1/{len(clients)} here (and below 0.5), "
                "'median' needs no trim"
            )
        return faults

    def privacy_faults(self) -> list[str]:
        """List weights and aggregations that are no sum with fixed weights."""
        faults = []
        if type(self).weight is not FedAvg.weight:
            faults.append("it weighs clients by a rule of its own")
        elif self.weights != "equal":
            faults.append(f"algorithm.init_args.weights must be 'equal', got {self.weights!r}")
        if self.aggregation not in ("separate", "freeze_a"):
            faults.append(
                "algorithm.init_args.aggregation must be 'separate' or 'freeze_a', got "
                f"{self.aggregation!r}"
            )
        return faults

    def hosted_lora(self, clients: Mapping[str, LoraSettings]) -> LoraSettings:
        """Return settings of an adapter that can hold the aggregate."""
        widest = max(clients.values(), key=lambda lora: lora.r)
        if self.aggregation != "stack":
            return widest
        rank = sum(lora.r for lora in clients.values())
        return LoraSettings(rank, rank, widest.dropout, widest.target_modules)

    @property
    def provisions(self) -> bool:
        """Whether devices need the A of their group, which the server has drawn."""
        return self.aggregation == "freeze_a"

    def prepare_edge(self, client: str, module: EdgeModule) -> None:
        """Freeze A under ``freeze_a``."""
        if self.aggregation == "freeze_a" and module.backbone.trains_a():
            module.backbone.freeze_a()

    def prepare(self, server: ServerLearner, clients: Mapping[str, EdgeModule]) -> None:
        """Read the clients' adapter settings; under ``freeze_a`` give each group one fixed A."""
        self._loras = {name: module.backbone.lora for name, module in clients.items()}
        self._hosts = {n: server.module.host_of(m.backbone) for n, m in clients.items()}
        if self.aggregation != "freeze_a":
            return
        initial = {host: server.module.adapter_state(host) for host in server.module.hosts}
        for host in server.module.hosts:
            server.module.tower(host).backbone.freeze_a()
        for name, module in clients.items():
            module.load_adapter_state(initial[self._hosts[name]])

    # The round ------------------------------------------------------------------------------

    def downlink(self, edge: EdgeModule) -> Schema:
        """Declare the adapter, and the server's answers."""
        return self._with_adapter(edge, super().downlink(edge))

    def uplink(self, edge: EdgeModule) -> Schema:
        """Declare the adapter, the modality names, the number of private samples and answers."""
        return self._with_adapter(edge, super().uplink(edge))

    @staticmethod
    def _with_adapter(edge: EdgeModule, schema: Schema) -> Schema:
        adapter = adapter_fields(edge.backbone.adapter_parameters())
        return Schema({**adapter, **schema.tensors}, schema.scalars)

    def broadcast(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> Iterable[tuple[str, Message]]:
        """Send each client the adapter hosted for its group, in the client's rank."""
        tensors, scalars = self.server_answers(server, loaders, ctx)
        made: dict[tuple[str, int, float], dict[str, Tensor]] = {}  # that of equals is the same
        for client in ctx.participants:
            lora = self._loras[client]
            key = self._hosts[client], lora.r, lora.alpha
            if key not in made:
                made[key] = self.shipped(server, client)
            yield client, Message({**made[key], **tensors}, scalars)

    def shipped(self, server: ServerLearner, client: str) -> dict[str, Tensor]:
        """Return the adapter that is hosted for a client's group now, in the client's rank.

        It is asked for once for all clients of one group, rank and alpha.
        """
        lora, host = self._loras[client], self._hosts[client]
        # On the CPU: what follows is in float64, which not every device has.
        adapter = {k: v.cpu() for k, v in server.module.adapter_state(host).items()}
        scaling = server.module.tower(host).backbone.scaling
        if self.aggregation != "freeze_a":
            fit = first_ranks if self.aggregation == "dimensions" else fit_rank
            adapter = fit(adapter, scaling=scaling, rank=lora.r, target_scaling=lora.alpha / lora.r)
        return {f"adapter/{k}": v for k, v in adapter.items()}

    def client_update(
        self, edge: EdgeLearner, loaders: Loaders, broadcast: Message | None, ctx: RoundContext
    ) -> ClientUpdate:
        """Load the received adapter, train, and send the adapter back."""
        assert broadcast is not None
        edge.module.load_adapter_state(broadcast.component("adapter"), mix=self._mix(edge))
        message, losses = super().client_update(edge, loaders, broadcast, ctx)
        assert message is not None
        adapter = {f"adapter/{k}": v for k, v in edge.module.adapter_state().items()}
        return ClientUpdate(Message({**adapter, **message.tensors}, message.scalars), losses)

    def _mix(self, edge: EdgeLearner) -> float:
        # Before its first round, which may be any of the run, a client has no trained adapter to
        # keep, and all must start alike.
        return self.adapter_mix if edge.optimization.rounds else 1.0

    def weight(self, message: Message) -> float:
        """Return the weight of a client's adapter: the number of its private samples, or 1."""
        return told_samples(message)

    def aggregate(
        self, updates: Iterable[tuple[str, Message]], ctx: RoundContext
    ) -> GroupedAdapters:
        """Average the adapters of each group as they arrive."""
        groups: dict[str, dict[str, LoraSettings]] = {}
        for client, host in self._hosts.items():
            groups.setdefault(host, {})[client] = self._loras[client]
        totals = {host: self._aggregator(loras) for host, loras in groups.items()}
        votes = list[tuple[Labels, float]]()
        for client, message in updates:
            votes += self.vote(message)
            own = self._loras[client]
            totals[self._hosts[client]].add(
                message.component("adapter"),
                weight=self.weight(message),
                scaling=own.alpha / own.r,
            )
        adapters = GroupedAdapters.of({host: total.result() for host, total in totals.items()})
        if self.answers is None:
            return adapters
        return AnsweredAdapters(
            clients=adapters.clients,
            error=adapters.error,
            adapters=adapters.adapters,
            votes=tuple(votes),
        )

    def _aggregator(self, clients: Mapping[str, LoraSettings]) -> AdapterAggregator:
        lora = self.hosted_lora(clients)
        return AdapterAggregator(
            self.aggregation, rank=lora.r, scaling=lora.alpha / lora.r, trim=self.trim
        )

    def server_update(
        self,
        server: ServerLearner,
        aggregate: GroupedAdapters | None,
        loaders: Loaders,
        ctx: RoundContext,
    ) -> dict[str, float]:
        """Host the averaged adapters, then train on public data."""
        if aggregate is not None:
            for host, adapter in aggregate.adapters.items():
                self.host_adapter(server.module, host, adapter)
        return super().server_update(server, aggregate, loaders, ctx)

    def host_adapter(self, server: ServerModule, host: str, adapter: Mapping[str, Tensor]) -> None:
        """Replace a hosted adapter by the aggregated one.

        An algorithm with an optimiser on the server overrides this, and takes a step from the
        hosted towards the aggregated adapter.

        Args:
            server: The server's module.
            host: The tower that hosts the adapter of a group of clients.
            adapter: The group's aggregated adapter.
        """
        if self.aggregation == "dimensions":
            # A round may lack the clients of the largest ranks.
            adapter = over_ranks(server.adapter_state(host), adapter)
        server.load_adapter_state(adapter, host=host)
