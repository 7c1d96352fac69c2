"""Multi-FedAvg: FedAvg that also averages the encoder of each modality (arXiv 2109.04833)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mlecs_lightning.aggregation import AdapterAggregator, GroupedAdapters
from mlecs_lightning.algorithms.answers import AnsweredAdapters
from mlecs_lightning.algorithms.fedavg import FedAvg
from mlecs_lightning.errors import FaultList
from mlecs_lightning.modules import EdgeModule, MultimodalLM
from mlecs_lightning.rounds import ClientUpdate, EdgeLearner, Loaders, RoundContext, ServerLearner
from mlecs_lightning.settings import LoraSettings
from mlecs_lightning.wire import Message, Schema
from mlecs_lightning.wire.messages import TensorField

__all__ = ["MultiFedAvg"]

_EXTRACTORS = "extractors."


@dataclass(frozen=True, kw_only=True)
class _EncodedAdapters(AnsweredAdapters):
    """Aggregated adapters, the clients' answers, and the mean of each encoder."""

    encoders: Mapping[str, Tensor]


class MultiFedAvg(FedAvg):
    """FedAvg over adapters and encoders: an encoder is averaged over the clients with its modality.

    The server's encoders are the common ones. They are trained in the warm-up and sent to the
    clients in every round. Afterwards the server replaces them by the clients' mean, weighted by
    private samples, and keeps them frozen while it trains its connector and LLM on public data.
    Connectors stay on the devices, since their shape depends on a device's sensors.

    Source: the mean and the frozen encoders of the server are those of Mm-FedAvg (Zhao et al.,
    IoTDI 2022). Where ours differs: encoders are trained with the loss of the answer, not as
    autoencoders; clients with several sensors have no extra weight; the head of a client is a
    language model, whose adapter is averaged as well; and public data are used as in our other
    baselines.
    """

    def faults(self, clients: Mapping[str, LoraSettings], *, batch_size: int) -> list[str]:
        """List also aggregations that are to withstand hostile clients: encoders are averaged."""
        faults = super().faults(clients, batch_size=batch_size)
        if self.aggregation in ("median", "trimmed_mean"):
            faults.append(
                f"algorithm.init_args.aggregation is {self.aggregation!r}, but MultiFedAvg takes "
                "the mean of encoders, which withstands no hostile client: use FedAvg"
            )
        return faults

    def prepare(self, server: ServerLearner, clients: Mapping[str, EdgeModule]) -> None:
        """Check that clients and server have the same encoders.

        Raises:
            ConfigurationError: If one differs; names the client and the tensor.
        """
        super().prepare(server, clients)
        common, faults = _encoders(server.module), FaultList()
        self._held: dict[str, tuple[str, ...]] = {}
        for name, module in clients.items():
            own = _encoders(module)
            self._held[name] = tuple(own)
            odd = [k for k, t in own.items() if k not in common or t.shape != common[k].shape]
            if odd:
                faults.append(
                    f"clients.{name} has an encoder that the server lacks ({odd[0]}), and "
                    "MultiFedAvg averages encoders: edge.extractors and server.extractors must be "
                    "the same"
                )
        faults.raise_any()

    def downlink(self, edge: EdgeModule) -> Schema:
        """Declare also the encoders of the client's modalities."""
        return self._with_encoders(edge, super().downlink(edge))

    def uplink(self, edge: EdgeModule) -> Schema:
        """Declare also the encoders of the client's modalities."""
        return self._with_encoders(edge, super().uplink(edge))

    @staticmethod
    def _with_encoders(edge: EdgeModule, schema: Schema) -> Schema:
        held = _encoders(edge).items()
        encoders = {f"encoder/{k}": TensorField(tuple(t.shape), t.dtype) for k, t in held}
        return Schema({**schema.tensors, **encoders}, schema.scalars)

    def broadcast(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> Iterable[tuple[str, Message]]:
        """Send also the encoders of each client's modalities."""
        # A copy: the server's encoders change in place, and a late reply is compared with these.
        common = {k: t.detach().clone() for k, t in _encoders(server.module).items()}
        for client, message in super().broadcast(server, loaders, ctx):
            encoders = {f"encoder/{k}": common[k] for k in self._held[client]}
            yield client, Message({**message.tensors, **encoders}, message.scalars)

    def client_update(
        self, edge: EdgeLearner, loaders: Loaders, broadcast: Message | None, ctx: RoundContext
    ) -> ClientUpdate:
        """Load the received encoders, take the round of `FedAvg`, and send them back."""
        assert broadcast is not None
        _load(edge.module, broadcast.component("encoder"))
        message, losses = super().client_update(edge, loaders, broadcast, ctx)
        assert message is not None
        held = _encoders(edge.module).items()
        encoders = {f"encoder/{k}": t.detach().clone() for k, t in held}
        return ClientUpdate(Message({**message.tensors, **encoders}, message.scalars), losses)

    def former(
        self, server: ServerLearner, message: Message, received: Message | None
    ) -> Mapping[str, Tensor]:
        """Return also the received encoders."""
        sent = {} if received is None else received.tensors
        limited = (k for k in message.tensors if k.startswith(("adapter/", "encoder/")))
        return {k: sent[k] for k in limited if k in sent}

    def aggregate(
        self, updates: Iterable[tuple[str, Message]], ctx: RoundContext
    ) -> _EncodedAdapters:
        """Average adapters and encoders as they arrive."""
        means = AdapterAggregator("separate", rank=1, scaling=1.0)  # encoders have no rank

        def seen() -> Iterator[tuple[str, Message]]:
            for client, message in updates:
                encoders = message.component("encoder")
                means.add(encoders, weight=self.weight(message), scaling=1.0)
                yield client, message

        adapters = super().aggregate(seen(), ctx)
        return _EncodedAdapters(
            clients=adapters.clients,
            error=adapters.error,
            adapters=adapters.adapters,
            votes=adapters.votes if isinstance(adapters, AnsweredAdapters) else (),
            encoders=means.result().adapter,
        )

    def server_update(
        self,
        server: ServerLearner,
        aggregate: GroupedAdapters | None,
        loaders: Loaders,
        ctx: RoundContext,
    ) -> dict[str, float]:
        """Host the mean encoders, then train the rest of the server on public data."""
        if isinstance(aggregate, _EncodedAdapters):
            _load(server.module, aggregate.encoders)
        with server.module.frozen_extractors():
            return super().server_update(server, aggregate, loaders, ctx)


def _encoders(module: MultimodalLM) -> dict[str, Tensor]:
    """Return the tensors of a module's encoders, not copies, by modality and name."""
    held = module.trainable_tensors().items()
    return {k.removeprefix(_EXTRACTORS): t for k, t in held if k.startswith(_EXTRACTORS)}


@torch.no_grad()
def _load(module: MultimodalLM, encoders: Mapping[str, Tensor]) -> None:
    own = _encoders(module)
    for name, value in encoders.items():
        own[name].copy_(value)
