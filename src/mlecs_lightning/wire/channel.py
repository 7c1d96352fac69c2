"""The channel between devices and cloud: serialises, checks, and counts every message."""

from __future__ import annotations

import math
import reprlib
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mlecs_lightning.errors import FaultList
from mlecs_lightning.wire.codec import Codec, CodecError, Direction
from mlecs_lightning.wire.encoding import ChannelError, decode, encode
from mlecs_lightning.wire.messages import REPORT, Message, Scalar, Schema, component_of

__all__ = [
    "Channel",
    "ChannelError",
    "Direction",
    "MessageLimits",
    "ReceivedMessage",
    "SerialisedMessage",
    "adapter_of",
    "component_sizes",
]

_NOTHING: Mapping[str, Tensor] = {}


def _faults(message: Message, schema: Schema, max_norm: float | None) -> list[str]:
    """Return everything that is wrong with a message."""
    forms = {**schema.tensors, **schema.optional}
    faults = [f"undeclared tensor {k!r}" for k in sorted(message.tensors.keys() - forms)]
    faults += [f"missing tensor {k!r}" for k in sorted(schema.tensors.keys() - message.tensors)]
    faults += [f"undeclared scalar {k!r}" for k in sorted(message.scalars.keys() - schema.scalars)]
    faults += [f"missing scalar {k!r}" for k in sorted(schema.scalars.keys() - message.scalars)]
    for name, declared in schema.scalars.items():
        broken = declared.fault(message.scalars[name]) if name in message.scalars else None
        if broken:
            faults.append(f"scalar {name!r}: {broken}")
    floats: dict[str, Tensor] = {}
    for name, form in forms.items():
        if name not in message.tensors:
            continue
        tensor = message.tensors[name]
        fault = form.fault(tensor)
        if fault:
            faults.append(f"tensor {name!r}: {fault}")
        elif tensor.is_floating_point():
            floats[name] = tensor
    faults += [f"tensor {name!r}: not finite" for name in _not_finite(floats)]
    if max_norm is not None:
        norm = 0.0
        for name, tensor in floats.items():
            if component_of(name) != REPORT:
                own = torch.linalg.vector_norm(tensor, dtype=torch.float64)
                norm = math.hypot(norm, float(own))  # its square could be too large
        if norm > max_norm:
            faults.append(f"norm {norm:.4g} exceeds {max_norm:.4g}")
    return faults


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that have an infinite element or one that is no number."""
    held = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
    norms = torch._foreach_norm(list(held.values())) if held else []
    # A finite norm has finite elements. An infinite one may have, too: then each is looked at.
    if not norms or bool(torch.stack([norm.float() for norm in norms]).isfinite().all()):
        return []
    return [name for name, each in held.items() if not bool(torch.isfinite(each).all())]


def _envelope_faults(envelope: Mapping[str, Scalar], *, client: str, round: int) -> list[str]:
    """Return what is wrong with an envelope: it holds these two entries and nothing else."""
    expected: dict[str, Scalar] = {"client": client, "round": round}
    faults = [f"undeclared {k!r} in the envelope" for k in sorted(envelope.keys() - expected)]
    return faults + [
        f"{key} is {reprlib.repr(envelope.get(key))}, expected {value!r}"
        for key, value in expected.items()
        if type(envelope.get(key)) is not type(value) or envelope[key] != value
    ]


class ReceivedMessage(NamedTuple):
    """A message that has passed all checks.

    Attributes:
        message: As the receiver reads it, on the CPU.
        sizes: Number of bytes of each component, for the ledger.
    """

    message: Message
    sizes: dict[str, int]


class SerialisedMessage(NamedTuple):
    """A serialised message.

    Attributes:
        data: The bytes.
        message: What they hold: the message, compressed if there is a codec.
        memory: What the sender must keep for its next message; empty without a codec.
        error: Relative error of the update as the receiver will read it; ``None`` without a codec.
    """

    data: bytes
    message: Message
    memory: dict[str, Tensor]
    error: float | None


@dataclass(frozen=True)
class MessageLimits:
    """Limits on a message.

    Attributes:
        max_norm: Maximum Euclidean norm of all tensors of a message; ``None`` for no limit.
        max_bytes: Maximum length of a message in bytes; ``None`` for no limit. A longer one is
            refused unread.
    """

    max_norm: float | None = None
    max_bytes: int | None = 2**30

    def __post_init__(self) -> None:
        """Check ranges."""
        faults = FaultList()
        for name in ("max_norm", "max_bytes"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                faults.append(f"trainer.message_limits.{name} must be above 0, got {limit}")
        faults.raise_any()


class Channel:
    """Carries messages between clients and the server.

    Within one process, too, the receiver reads what was decoded from bytes, never the sender's
    object, so a simulated federation cannot share anything by accident. Every message names its
    client and its round, so it cannot be mistaken for another client's or for a later one.
    """

    def __init__(self, limits: MessageLimits | None = None, *, codec: Codec | None = None) -> None:
        """Open the channel.

        Args:
            limits: How large a message may be.
            codec: Compresses messages.
        """
        self._limits, self.codec = limits or MessageLimits(), codec

    def pack(
        self,
        message: Message,
        schema: Schema,
        *,
        direction: Direction,
        client: str,
        round: int,
        known: Mapping[str, Tensor] = _NOTHING,
        memory: Mapping[str, Tensor] = _NOTHING,
    ) -> SerialisedMessage:
        """Serialise a message, compressed if there is a codec.

        Args:
            message: The message.
            schema: Its declaration.
            direction: ``uplink`` or ``downlink``.
            client: The client that sends or receives it.
            round: The current round.
            known: Tensors that both sides hold, by name.
            memory: What the sender kept from its last message in this direction.

        Raises:
            ChannelError: If the message cannot be written.
        """
        if self.codec is None:
            data = self.send(message, client=client, round=round)
            return SerialisedMessage(data, message, {}, None)
        packed = self.codec.pack(message, schema, direction, known=known, memory=memory)
        data = self.send(packed.message, client=client, round=round)
        return SerialisedMessage(data, packed.message, packed.memory, packed.error)

    def send(self, message: Message, *, client: str, round: int) -> bytes:
        """Serialise a message with its envelope.

        Raises:
            ChannelError: If the message cannot be written.
        """
        return encode(message, {"client": client, "round": round})

    def receive(
        self,
        data: bytes,
        schema: Schema,
        *,
        direction: Direction,
        client: str,
        round: int,
        known: Mapping[str, Tensor] = _NOTHING,
    ) -> ReceivedMessage:
        """Read and check a message.

        Args:
            data: The bytes.
            schema: What the algorithm declared for this direction and client.
            direction: ``uplink`` or ``downlink``.
            client: The client that sends or receives it; the envelope must name it.
            round: The current round; the envelope must name it.
            known: As in `pack`.

        Raises:
            ChannelError: If the message is too large, unreadable, or from another client or round;
                if anything in it is undeclared, missing, not finite, or of the wrong shape, dtype
                or type; or if the codec cannot decode it.
        """
        try:
            if self._limits.max_bytes is not None and len(data) > self._limits.max_bytes:
                raise ChannelError(f"{len(data)} bytes exceed {self._limits.max_bytes}")
            message, envelope = decode(data)
            faults = _envelope_faults(envelope, client=client, round=round)
            codec = self.codec
            form = schema if codec is None else codec.declare(schema, direction)
            faults += _faults(message, form, self._limits.max_norm)
            sizes = component_sizes(message, len(data))
            if codec is not None and not faults:
                message = codec.unpack(message, schema, direction, known=known)
                faults = _faults(message, schema, self._limits.max_norm)
            if faults:
                raise ChannelError("; ".join(faults))
        except (ChannelError, CodecError) as error:
            # Names and values come from the sender, so the reason could be as long as the message.
            reason = textwrap.shorten(str(error), 1000, placeholder=" ...")
            raise ChannelError(f"{direction} of client {client!r} refused: {reason}") from error
        return ReceivedMessage(message, sizes)


def adapter_of(message: Message | None) -> dict[str, Tensor]:
    """Return the tensors of a message's adapter under their full names; none without a message."""
    tensors = {} if message is None else message.tensors
    return {k: t for k, t in tensors.items() if k.startswith("adapter/")}


def component_sizes(message: Message, total: int) -> dict[str, int]:
    """Count bytes by component; names, scalars and the rest of the format are ``header``.

    Args:
        message: The message as it is sent.
        total: Its length in bytes.
    """
    sizes: Counter[str] = Counter()
    for name, tensor in message.tensors.items():
        sizes[component_of(name)] += tensor.numel() * tensor.element_size()
    return {**sizes, "header": total - sum(sizes.values())}
