"""The only border between devices and cloud: serialises, checks, counts, refuses."""

from __future__ import annotations

import json
import math
import textwrap
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mlecs_lightning.federated.codec import Codec, CodecError, Direction
from mlecs_lightning.federated.messages import Message, Scalar, Schema

__all__ = [
    "Channel",
    "ChannelError",
    "Delivery",
    "Direction",
    "Ledger",
    "Parcel",
    "decode",
    "encode",
]

_NOTHING: Mapping[str, Tensor] = {}


class ChannelError(Exception):
    """A message that may not cross the border; says whose, in which direction and why."""


class Ledger:
    """Bytes that crossed the border, by direction, client and component."""

    def __init__(self) -> None:
        """Start at zero."""
        self._bytes: Counter[tuple[str, str, str]] = Counter()
        self._messages: Counter[tuple[str, str]] = Counter()

    def add(self, direction: Direction, client: str, parts: dict[str, int]) -> None:
        """Count one message: bytes by component."""
        for component, size in parts.items():
            self._bytes[direction, client, component] += size
        self._messages[direction, client] += 1

    def total(self, direction: Direction, *, client: str | None = None) -> int:
        """Return the bytes of a direction, of one client or of all."""
        return sum(
            size
            for (way, name, _), size in self._bytes.items()
            if way == direction and client in (None, name)
        )

    def messages(self, direction: Direction, *, client: str | None = None) -> int:
        """Return the number of messages of a direction, of one client or of all."""
        return sum(
            n
            for (way, name), n in self._messages.items()
            if way == direction and client in (None, name)
        )

    def per_message(self, direction: Direction) -> float:
        """Return the mean bytes of one client's message: one client's round, one way."""
        messages = self.messages(direction)
        return self.total(direction) / messages if messages else 0.0

    def by_component(self) -> dict[str, dict[str, int]]:
        """Return bytes by direction and component."""
        table: dict[str, dict[str, int]] = {"uplink": {}, "downlink": {}}
        for (way, _, component), size in sorted(self._bytes.items()):
            table[way][component] = table[way].get(component, 0) + size
        return table

    def state_dict(self) -> dict[str, Any]:
        """Return plain lists, strings and numbers."""
        return {
            "bytes": [[*key, n] for key, n in sorted(self._bytes.items())],
            "messages": [[*key, n] for key, n in sorted(self._messages.items())],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._bytes = Counter({(a, b, c): n for a, b, c, n in state["bytes"]})
        self._messages = Counter({(a, b): n for a, b, n in state["messages"]})


def encode(message: Message, envelope: Mapping[str, int | str] | None = None) -> bytes:
    """Serialise a message: a safetensors file whose metadata hold scalars and envelope as JSON.

    Args:
        message: Tensors and scalars.
        envelope: Whose message it is and of which round.

    Raises:
        ChannelError: If a scalar has no JSON form, or tensors share their memory.
    """
    try:
        tensors = {k: t.detach().cpu().contiguous() for k, t in message.tensors.items()}
        # One entry: safetensors writes several in an order that differs from process to process.
        about = {"scalars": dict(message.scalars), "envelope": dict(envelope or {})}
        return save(tensors, metadata={"message": json.dumps(about)})
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise ChannelError(f"unwritable message: {error}") from error


def decode(data: bytes) -> tuple[Message, dict[str, Scalar]]:
    """Read what `encode` wrote: the message and its envelope.

    Raises:
        ChannelError: If the bytes are not such a message.
    """
    try:
        # safetensors hands them out in an order that differs from process to process, and sums over
        # them would differ in the last bit.
        tensors = dict(sorted(load(data).items()))
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["message"])
        scalars, envelope = (
            {k: _scalar(k, v) for k, v in about[part].items()} for part in ("scalars", "envelope")
        )
        return Message(tensors, scalars), envelope
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,  # of empty tensors with giant shapes, and of JSON nested too deeply
    ) as error:
        raise ChannelError(f"unreadable message of {len(data)} bytes: {error}") from error


def _scalar(name: str, value: object) -> Scalar:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise ValueError(f"scalar {name!r} is {type(value).__name__}")


def _faults(message: Message, schema: Schema, max_norm: float | None) -> list[str]:
    """Say everything that is wrong with a message."""
    faults = [f"undeclared tensor {k!r}" for k in sorted(message.tensors.keys() - schema.tensors)]
    faults += [f"missing tensor {k!r}" for k in sorted(schema.tensors.keys() - message.tensors)]
    faults += [f"undeclared scalar {k!r}" for k in sorted(message.scalars.keys() - schema.scalars)]
    faults += [f"missing scalar {k!r}" for k in sorted(schema.scalars.keys() - message.scalars)]
    for name, declared in schema.scalars.items():
        broken = declared.fault(message.scalars[name]) if name in message.scalars else None
        if broken:
            faults.append(f"scalar {name!r}: {broken}")
    squares = 0.0
    for name, form in schema.tensors.items():
        if name not in message.tensors:
            continue
        tensor = message.tensors[name]
        fault = form.fault(tensor)
        if fault:
            faults.append(f"tensor {name!r}: {fault}")
        elif tensor.is_floating_point():
            norm = float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
            squares += norm**2
            if not math.isfinite(norm):
                faults.append(f"tensor {name!r}: not finite")
    if max_norm is not None and squares > max_norm**2:
        faults.append(f"norm {squares**0.5:.4g} exceeds {max_norm:.4g}")
    return faults


class Delivery(NamedTuple):
    """A message that has passed the border.

    Attributes:
        message: As the receiver reads it, on the CPU.
        sizes: Its bytes by component, for the ledger.
    """

    message: Message
    sizes: dict[str, int]


class Parcel(NamedTuple):
    """A message ready to cross the border.

    Attributes:
        data: The bytes.
        memory: What the sender has to remember for its next message; empty without a codec.
        error: Relative error of the update that the receiver will read; ``None`` without a codec.
    """

    data: bytes
    memory: dict[str, Tensor]
    error: float | None


class Channel:
    """Carries messages over the border, in one process as real bytes.

    What arrives is what was decoded from the bytes, never the sender's object: a simulated
    federation can share nothing by accident. Every message says who it belongs to and in which
    round it was written, so that none can be taken for another's or for that of a later round.
    """

    def __init__(
        self,
        *,
        max_norm: float | None = None,
        max_bytes: int | None = None,
        codec: Codec | None = None,
    ) -> None:
        """Open the channel.

        Args:
            max_norm: Largest Euclidean norm of all tensors of a message; ``None`` sets no limit.
            max_bytes: Largest message; a larger one is not even decoded. ``None`` sets no limit.
            codec: Makes messages shorter on their way.
        """
        for key, limit in (("norm", max_norm), ("bytes", max_bytes)):
            if limit is not None and not limit > 0:
                raise ValueError(f"trainer.max_message_{key} must be above 0, got {limit}")
        self._max_norm, self._max_bytes, self.codec = max_norm, max_bytes, codec

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
    ) -> Parcel:
        """Return the bytes of a message as they cross the border, by the codec if there is one.

        Args:
            message: The message.
            schema: Its declaration.
            direction: ``uplink`` or ``downlink``.
            client: The client at the one end.
            round: The round under way.
            known: Tensors that both ends hold, by name.
            memory: What the sender remembers of its last message of this direction.

        Raises:
            ChannelError: If the message cannot be written.
        """
        if self.codec is None:
            return Parcel(self.send(message, client=client, round=round), {}, None)
        packed = self.codec.pack(message, schema, direction, known=known, memory=memory)
        data = self.send(packed.message, client=client, round=round)
        return Parcel(data, packed.memory, packed.error)

    def send(self, message: Message, *, client: str, round: int) -> bytes:
        """Return the bytes of a message with its envelope.

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
    ) -> Delivery:
        """Read and check what came over the wire.

        Args:
            data: The bytes.
            schema: What the algorithm declared for this direction and client.
            direction: ``uplink`` or ``downlink``.
            client: The client at the one end: the envelope must name it.
            round: The round under way: the envelope must name it.
            known: As in `pack`.

        Raises:
            ChannelError: If the message is too long, unreadable, of another client or round, or
                anything in it is undeclared, missing, of another shape, dtype or type, not finite,
                or too large; or if the codec cannot make sense of it.
        """
        try:
            if self._max_bytes is not None and len(data) > self._max_bytes:
                raise ChannelError(f"{len(data)} bytes exceed {self._max_bytes}")
            message, envelope = decode(data)
            expected = {"client": client, "round": round}
            faults = [
                f"{key} is {envelope.get(key)!r}, expected {value!r}"
                for key, value in expected.items()
                if envelope.get(key) != value
            ]
            codec = self.codec
            form = schema if codec is None else codec.declare(schema, direction)
            faults += _faults(message, form, self._max_norm)
            sizes = _sizes(message, len(data))
            if codec is not None and not faults:
                message = codec.unpack(message, schema, direction, known=known)
                faults = _faults(message, schema, self._max_norm)
            if faults:
                raise ChannelError("; ".join(faults))
        except (ChannelError, CodecError) as error:
            # Names and values come from the sender: the reason must not be as long as the message.
            reason = textwrap.shorten(str(error), 1000, placeholder=" ...")
            raise ChannelError(f"{direction} of client {client!r} refused: {reason}") from error
        return Delivery(message, sizes)


def _sizes(message: Message, total: int) -> dict[str, int]:
    """Split a message's bytes: tensors by component, the rest (names, scalars) is ``header``."""
    sizes: Counter[str] = Counter()
    for name, tensor in message.tensors.items():
        sizes[name.partition("/")[0]] += tensor.numel() * tensor.element_size()
    return {**sizes, "header": total - sum(sizes.values())}
