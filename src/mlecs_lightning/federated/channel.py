"""The only border between devices and cloud: serialises, checks, counts, refuses."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from mlecs_lightning.federated.messages import Message, Scalar, Schema

__all__ = ["Channel", "ChannelError", "Direction", "Ledger", "decode", "encode"]

Direction = Literal["uplink", "downlink"]


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


def encode(message: Message) -> bytes:
    """Serialise a message: a safetensors file whose metadata hold the scalars as JSON.

    Raises:
        ChannelError: If a scalar has no JSON form, or tensors share their memory.
    """
    try:
        tensors = {k: t.detach().cpu().contiguous() for k, t in message.tensors.items()}
        return save(tensors, metadata={"scalars": json.dumps(dict(message.scalars))})
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise ChannelError(f"unwritable message: {error}") from error


def decode(data: bytes) -> Message:
    """Read what `encode` wrote.

    Raises:
        ChannelError: If the bytes are not such a message.
    """
    try:
        # safetensors hands them out in an order that differs from process to process, and sums over
        # them would differ in the last bit.
        tensors = dict(sorted(load(data).items()))
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        scalars = json.loads(header["__metadata__"]["scalars"])
        return Message(tensors, {k: _scalar(k, v) for k, v in scalars.items()})
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,  # of JSON nested too deeply
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
    for name, kind in schema.scalars.items():
        value = message.scalars.get(name)
        if name in message.scalars and type(value) is not kind:
            faults.append(f"scalar {name!r} is no {kind.__name__}")
        elif isinstance(value, float) and not math.isfinite(value):
            faults.append(f"scalar {name!r}: not finite")
    squares = 0.0
    for name, form in schema.tensors.items():
        if name not in message.tensors:
            continue
        tensor = message.tensors[name]
        fault = form.fault(tensor)
        if fault:
            faults.append(f"tensor {name!r}: {fault}")
        elif tensor.is_floating_point():
            squares += float(tensor.double().square().sum())
            if not bool(torch.isfinite(tensor).all()):
                faults.append(f"tensor {name!r}: not finite")
    if max_norm is not None and squares > max_norm**2:
        faults.append(f"norm {squares**0.5:.4g} exceeds {max_norm:.4g}")
    return faults


class Channel:
    """Carries messages over the border, in one process as real bytes.

    What arrives is what was decoded from the bytes, never the sender's object: a simulated
    federation can share nothing by accident.
    """

    def __init__(self, *, max_norm: float | None = None) -> None:
        """Open the channel.

        Args:
            max_norm: Largest Euclidean norm of all tensors of a message; ``None`` sets no limit.
        """
        self.ledger = Ledger()
        self._max_norm = max_norm

    def transfer(
        self, message: Message, schema: Schema, *, direction: Direction, client: str
    ) -> Message:
        """Carry one message.

        Args:
            message: What the sender hands over.
            schema: What the algorithm declared for this direction and client.
            direction: ``uplink`` or ``downlink``.
            client: The client at the one end.

        Returns:
            The message as the receiver reads it, on the CPU.

        Raises:
            ChannelError: If it is unreadable, or anything in it is undeclared, missing, of another
                shape, dtype or type, not finite, or too large. Nothing is counted then.
        """
        try:
            data = encode(message)
            received = decode(data)
            faults = _faults(received, schema, self._max_norm)
            if faults:
                raise ChannelError("; ".join(faults))
        except ChannelError as error:
            raise ChannelError(f"{direction} of client {client!r} refused: {error}") from error
        self.ledger.add(direction, client, _sizes(received, len(data)))
        return received


def _sizes(message: Message, total: int) -> dict[str, int]:
    """Split a message's bytes: tensors by component, the rest (names, scalars) is ``header``."""
    sizes: Counter[str] = Counter()
    for name, tensor in message.tensors.items():
        sizes[name.partition("/")[0]] += tensor.numel() * tensor.element_size()
    return {**sizes, "header": total - sum(sizes.values())}
