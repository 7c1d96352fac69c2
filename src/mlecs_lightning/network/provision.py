"""The hand-over of a device's first state, where the device cannot build it alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mlecs_lightning.clients.edges import CodecState, Edges
from mlecs_lightning.clients.federation import FederationModels
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.wire.channel import Channel, MessageLimits, component_sizes
from mlecs_lightning.wire.messages import Message, Schema, TensorField

__all__ = ["install", "provision"]

BEFORE = -1
"""The round of the first state."""


def provision(
    federation: FederationModels, algorithm: Algorithm, client: str, *, coded: bool
) -> tuple[bytes, dict[str, int]]:
    """Return the first state of a client as a message, and its bytes by component.

    Both are empty if the client can build it.

    Args:
        federation: The server's; `FederationModels.deliver` has prepared the states.
        algorithm: The method.
        client: The client.
        coded: Whether there is a codec, whose first message refers to the shipped adapter.
    """
    state = federation.store.get(client) or {}
    tensors: dict[str, Tensor] = {f"model/{k}": v for k, v in state.get("model", {}).items()}
    if coded:
        received = federation.codec_state(client).received
        tensors |= {f"wire/{k}": v for k, v in received.items()}
    if not tensors:
        return b"", {}
    message = Message(tensors)
    data = Channel().send(message, client=client, round=BEFORE)
    return data, component_sizes(message, len(data))


def install(
    edges: Edges, algorithm: Algorithm, client: str, data: bytes, *, limits: MessageLimits
) -> None:
    """Store a first state on the device.

    Args:
        edges: The device's model.
        algorithm: The method; it declares what a broadcast may hold.
        client: The client.
        data: What `provision` returned.
        limits: How large a message may be.

    Raises:
        ChannelError: If it does not fit the model.
    """
    edge = edges.edge(client)
    model, wire = edge.module.trainable_state(), algorithm.downlink(edge.module).tensors
    fields = {f"model/{k}": TensorField(tuple(v.shape), v.dtype) for k, v in model.items()}
    needed = fields if algorithm.provisions else {}
    optional = {f"wire/{k}": f for k, f in wire.items() if k.startswith("adapter/")}
    message, _ = Channel(limits).receive(
        data,
        Schema(needed, {}, optional),
        direction="downlink",
        client=client,
        round=BEFORE,
    )
    state: dict[str, Any] = edge.state_dict()
    state["model"] = state["model"] | message.component("model")
    received: Mapping[str, Tensor] = message.component("wire")
    if received:
        state["wire"] = CodecState(received, {}).plain()
    edges.store.put(client, state, round=BEFORE)
