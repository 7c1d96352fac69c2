"""Messages as bytes, in one canonical form, so that nothing can be hidden in them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from mlecs_lightning.wire.messages import Message, Scalar

__all__ = ["ChannelError", "decode", "encode"]


_TYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Types of tensors as safetensors names them, in the order of a file."""
_RANKS = {kind: rank for rank, kind in enumerate(_TYPES)}


class ChannelError(Exception):
    """A refused message; says of which client, in which direction, and why."""


def encode(message: Message, envelope: Mapping[str, int | str] | None = None) -> bytes:
    """Serialise a message as a safetensors file whose metadata hold scalars and envelope as JSON.

    Equal messages have equal bytes, since all names are sorted.

    Args:
        message: Tensors and scalars.
        envelope: The client and the round of the message.

    Raises:
        ChannelError: If a scalar has no JSON form, or a tensor is of another type than `_TYPES`.
    """
    try:
        tensors = {k: t.detach().cpu().contiguous() for k, t in message.tensors.items()}
        parts = (_bytes_of(tensors[name]) for name in _order(tensors))
        return b"".join([_head(tensors, message.scalars, envelope or {}), *parts])
    except (ValueError, TypeError, RuntimeError) as error:
        raise ChannelError(f"unwritable message: {error}") from error


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names in the order of a file: wide types first, so that all are aligned."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _RANKS:
            raise ValueError(f"tensor {name!r} is of type {tensor.dtype}")
    return sorted(tensors, key=lambda name: (_RANKS[tensors[name].dtype], name))


def _head(
    tensors: Mapping[str, Tensor],
    scalars: Mapping[str, Scalar],
    envelope: Mapping[str, int | str],
) -> bytes:
    """Return what is before the values in a file: its length, metadata, types, shapes and places.

    As safetensors writes it, which copies the values twice and offers no head without them.
    """
    # A single entry, since safetensors writes several in an order that differs by process.
    about = {"scalars": dict(scalars), "envelope": dict(envelope)}
    message = json.dumps(about, sort_keys=True, allow_nan=False)
    entries: dict[str, Any] = {"__metadata__": {"message": message}}
    end = 0
    for name in _order(tensors):
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor) -> Any:  # noqa: ANN401 - an array, whose bytes are joined
    each = tensor.reshape(-1, 1).view(torch.uint8)
    return (each.flip(1) if sys.byteorder == "big" else each).numpy()


def decode(data: bytes) -> tuple[Message, dict[str, Scalar]]:
    """Read what `encode` wrote: the message and its envelope.

    Bytes are refused unless `encode` would write the decoded message as exactly these bytes. So
    every accepted bit belongs to a tensor, a scalar or the envelope; spaces, the order of names,
    further metadata and unused parts of the file cannot carry hidden content.

    Raises:
        ChannelError: If the bytes are not such a message.
    """
    try:
        message, envelope = _read(data)
        # safetensors accepts no gap between values and nothing after them: with the same head, the
        # values are the same.
        if not data.startswith(_head(message.tensors, message.scalars, envelope)):
            raise ValueError("it is not written as `encode` writes it")
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,  # of empty tensors with giant shapes, and of JSON nested too deeply
    ) as error:
        raise ChannelError(f"unreadable message of {len(data)} bytes: {error}") from error
    return message, envelope


def _read(data: bytes) -> tuple[Message, dict[str, Any]]:
    # safetensors returns tensors in an order that differs by process, and sums over them would
    # differ in the last bit.
    loaded = dict(sorted(load(data).items()))
    for name, tensor in loaded.items():
        # A bool is stored as a byte, and torch accepts any non-zero byte as True; a copy has 1.
        if tensor.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
            raise ValueError(f"tensor {name!r}: a bool that is neither 0 nor 1")
    # Copied, since they lie wherever Python put the bytes, and the last bit of a matrix product can
    # depend on the address. Torch's own memory is aligned.
    tensors = {name: tensor.clone() for name, tensor in loaded.items()}
    length = int.from_bytes(data[:8], "little")
    metadata = _closed(_parsed(data[8 : 8 + length])["__metadata__"], "message")
    about = _closed(_parsed(metadata["message"]), "envelope", "scalars")
    scalars, envelope = (
        {k: _scalar(k, v) for k, v in about[part].items()} for part in ("scalars", "envelope")
    )
    return Message(tensors, scalars), envelope


def _parsed(text: str | bytes) -> Any:  # noqa: ANN401 - whatever JSON holds
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refused)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key stands twice")
    return table


def _refused(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _closed(table: Any, *names: str) -> dict[str, Any]:  # noqa: ANN401 - from JSON
    if not isinstance(table, dict) or table.keys() != set(names):
        raise ValueError(f"expected the keys {list(names)} and no others")
    return table


def _scalar(name: str, value: object) -> Scalar:
    if isinstance(value, str):
        value.encode()  # half a character can neither be shown nor kept in a file
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(str(_scalar(name, item)) for item in value)
    raise ValueError(f"scalar {name!r} is {type(value).__name__}")
