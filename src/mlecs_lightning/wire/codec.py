"""Codecs: compression of messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mlecs_lightning.errors import FaultList
from mlecs_lightning.functional.compression import (
    BITS,
    count_kept,
    dequantise_blocks,
    largest,
    pack_bits,
    packed_bytes,
    quantise_blocks,
    unpack_bits,
    with_error_feedback,
)
from mlecs_lightning.wire.messages import Message, ScalarField, Schema, TensorField

__all__ = ["DWC", "Codec", "CodecError", "CompressedMessage", "Direction"]

Direction = Literal["uplink", "downlink"]
_ADAPTER = "adapter/"
_PACKED, _ROWS, _STEPS = "adapter/packed", ".codes", ".steps"


class CodecError(ValueError):
    """A compressed message that cannot be decoded; says why."""


class CompressedMessage(NamedTuple):
    """A compressed message.

    Attributes:
        message: What is sent.
        memory: What the sender must keep until its next message, by tensor name.
        error: Relative Euclidean distance between the adapter's update as the receiver decodes it
            and the update itself; 0 if there is none.
    """

    message: Message
    memory: dict[str, Tensor]
    error: float


class Codec(ABC):
    """Compresses messages relative to what both sides know.

    ``known`` are tensors that both sides hold with identical bits: what the device received last
    or, before that, what it was delivered with. A codec has settings but no state. It returns what
    a sender must keep, and the loop stores that with the client's state and so in the checkpoint.
    """

    def describe(self) -> dict[str, Any]:
        """Return the name and the settings, for the summary."""
        return {"class_path": type(self).__name__, **vars(self)}

    @abstractmethod
    def declare(self, schema: Schema, direction: Direction) -> Schema:
        """Return the schema of a compressed message."""

    @abstractmethod
    def pack(
        self,
        message: Message,
        schema: Schema,
        direction: Direction,
        *,
        known: Mapping[str, Tensor],
        memory: Mapping[str, Tensor],
    ) -> CompressedMessage:
        """Compress a message.

        Args:
            message: The message; the receiver reads an approximation of it.
            schema: Its declaration.
            direction: ``uplink`` or ``downlink``.
            known: What both sides know.
            memory: What the sender kept from its last message in this direction.
        """

    @abstractmethod
    def unpack(
        self, message: Message, schema: Schema, direction: Direction, *, known: Mapping[str, Tensor]
    ) -> Message:
        """Return the message that the receiver reads.

        Args:
            message: A message of the schema that `declare` returns; its contents may be hostile.
            schema: The schema of the result.
            direction: ``uplink`` or ``downlink``.
            known: What both sides know.

        Raises:
            CodecError: If the contents are invalid.
        """


class DWC(Codec):
    """Dynamic weight update compression of CD-CCA (arXiv 2312.16279), for any algorithm.

    The largest ``fraction`` of the update of each adapter tensor is sent with ``bits`` bits a
    value; the rest is carried over to the next message. Both sides know the shapes, so one tensor
    of bytes holds everything: for each tensor, in the order of names, the positions of its values
    (one bit for each position, or 2 or 4 bytes for each value, whichever is smaller), the values,
    and the step sizes of their blocks. The details are our choice; see `functional.compression`.

    An update is the difference from what both sides know: on the downlink from what the device
    received last, on the uplink from what it received in this round. With 32 bits the new values
    themselves are sent, so ``fraction: 1`` with ``bits: 32`` is lossless.

    Other float32 tensors (representations, token features) have no earlier value to differ from.
    They are quantised row by row to ``feature_bits``.
    """

    def __init__(
        self,
        *,
        fraction: float = 0.1,
        bits: int = 4,
        block: int = 128,
        feature_bits: int = 32,
        directions: list[Direction] | None = None,
    ) -> None:
        """Set how strongly messages are compressed.

        Args:
            fraction: q, share of the values of each adapter tensor that is sent, in (0, 1].
            bits: b, number of bits of each value: 2, 4, 8, 16, or 32 for float32.
            block: Number of values that share a step size of four bytes.
            feature_bits: Number of bits for the values of other float tensors; 32 leaves them
                unchanged.
            directions: The directions that are compressed; both by default.

        Raises:
            ValueError: If a value is not allowed.
        """
        faults, key = FaultList(), "trainer.codec.init_args"
        if not 0 < fraction <= 1:
            faults.append(f"{key}.fraction must lie in (0, 1], got {fraction}")
        for name, value in (("bits", bits), ("feature_bits", feature_bits)):
            if value not in BITS:
                faults.append(f"{key}.{name} must be one of {list(BITS)}, got {value}")
        faults.check_range(f"{key}.block", block, at_least=1)
        unknown = [way for way in directions or () if way not in ("uplink", "downlink")]
        if unknown or directions == []:
            faults.append(f"{key}.directions: some of uplink and downlink, got {directions}")
        faults.raise_any()
        self.fraction, self.bits, self.block = fraction, bits, block
        self.feature_bits = feature_bits
        self.directions: list[Direction] = directions or ["uplink", "downlink"]

    # The form on the wire ---------------------------------------------------------------------

    def declare(self, schema: Schema, direction: Direction) -> Schema:
        """Return the schema of a compressed message; it includes the settings, which must match."""
        if direction not in self.directions:
            return schema
        tensors: dict[str, TensorField] = {}
        for name, field in schema.tensors.items():
            if name.startswith(_ADAPTER):
                continue
            if self._by_rows(name, field):
                width = field.shape[-1]
                assert width is not None
                tensors[name + _ROWS] = TensorField(
                    (None, packed_bytes(width, self.feature_bits)), torch.uint8
                )
                tensors[name + _STEPS] = TensorField((None,))
            else:
                tensors[name] = field
        sizes = self._sizes(schema)
        if sizes:
            length = sum(sum(self._parts(size)) for size in sizes.values())
            tensors[_PACKED] = TensorField((length,), torch.uint8)
        settings = {
            "dwc/bits": ScalarField(int, equal=self.bits),
            "dwc/fraction": ScalarField(float, equal=float(self.fraction)),
        }
        return Schema(tensors, {**schema.scalars, **settings}, schema.optional)

    def _by_rows(self, name: str, field: TensorField) -> bool:
        return (
            self.feature_bits < 32
            and not name.startswith(_ADAPTER)
            and field.dtype == torch.float32
            and len(field.shape) == 2
            and field.shape[1] is not None
        )

    @staticmethod
    def _sizes(schema: Schema) -> dict[str, int]:
        """Return the number of values of each adapter tensor, in the order of names."""
        sizes = {}
        for name in sorted(schema.tensors):
            if name.startswith(_ADAPTER):
                sizes[name] = 1
                for length in schema.tensors[name].shape:
                    assert length is not None
                    sizes[name] *= length
        return sizes

    def _parts(self, size: int) -> tuple[int, int, int]:
        """Return the bytes of places, values and steps of a tensor of ``size`` values."""
        kept = count_kept(size, self.fraction)
        places = (
            0 if kept == size else min(packed_bytes(size, 1), kept * (2 if size <= 2**16 else 4))
        )
        if self.bits == 32:
            return places, 4 * kept, 0
        return places, packed_bytes(kept, self.bits), 4 * -(-kept // self.block)

    # One tensor ---------------------------------------------------------------------------------

    def _write(self, new: Tensor, old: Tensor) -> Tensor:
        """Return the bytes of one tensor's update from ``old`` to ``new``, both (N,) float32."""
        size = len(new)
        update = new - old
        at = largest(update, self.fraction)
        if self.bits == 32:
            values = new[at].contiguous().view(torch.uint8)
            return torch.cat([self._write_places(at, size), values])
        codes, steps = quantise_blocks(update[at], self.bits, self.block)
        parts = [self._write_places(at, size), pack_bits(codes, self.bits)]
        return torch.cat([*parts, steps.contiguous().view(torch.uint8)])

    def _write_places(self, at: Tensor, size: int) -> Tensor:
        length = self._parts(size)[0]
        if length == 0:
            return torch.empty(0, dtype=torch.uint8)
        if length == packed_bytes(size, 1):
            return pack_bits(torch.zeros(size, dtype=torch.int32).index_fill(0, at, 1), 1)
        if size <= 2**16:
            return pack_bits(at, 16)
        return at.to(torch.int32).view(torch.uint8)

    def _read(self, data: Tensor, old: Tensor) -> Tensor:
        """Return the new values that the bytes make of ``old``, (N,) float32.

        Raises:
            CodecError: If places or values make no sense.
        """
        size = len(old)
        places, values, steps = torch.split(data, list(self._parts(size)))
        at = self._read_places(places, size)
        if self.bits == 32:
            # A copy, since the bytes of the message may not be aligned for floats.
            return old.index_put((at,), values.clone().view(torch.float32))
        scale = steps.clone().view(torch.float32)
        try:
            codes = unpack_bits(values, self.bits, len(at))
        except ValueError as error:
            raise CodecError(str(error)) from error
        _check_steps(codes, scale, bits=self.bits, block=self.block)
        change = dequantise_blocks(codes, scale, self.bits, self.block)
        return old.index_put((at,), old[at] + change)

    def _read_places(self, data: Tensor, size: int) -> Tensor:
        kept = count_kept(size, self.fraction)
        if kept == size:
            return torch.arange(size)
        try:
            if len(data) == packed_bytes(size, 1):
                at = unpack_bits(data, 1, size).nonzero().flatten()
            elif size <= 2**16:
                at = unpack_bits(data, 16, kept).long()
            else:
                at = data.clone().view(torch.int32).long()
        except ValueError as error:
            raise CodecError(str(error)) from error
        if len(at) != kept:
            raise CodecError(f"{len(at)} places, {kept} are to be sent")
        if int(at[0]) < 0 or int(at[-1]) >= size or not bool((at.diff() > 0).all()):
            raise CodecError(f"places that do not rise from 0 to {size - 1}")
        return at

    # A message ----------------------------------------------------------------------------------

    def pack(
        self,
        message: Message,
        schema: Schema,
        direction: Direction,
        *,
        known: Mapping[str, Tensor],
        memory: Mapping[str, Tensor],
    ) -> CompressedMessage:
        """See `Codec`.

        On the downlink ``known`` is the result of all earlier messages, so the difference includes
        what they left out. On the uplink it is what was just received, so the rest must be kept.
        """
        if direction not in self.directions:
            return CompressedMessage(message, {}, 0.0)
        sizes = self._sizes(schema)
        tensors: dict[str, Tensor] = {}
        for name, tensor in message.tensors.items():
            if name in schema.tensors and self._by_rows(name, schema.tensors[name]):
                tensors |= self._pack_rows(name, tensor.cpu())
            elif name not in sizes:
                tensors[name] = tensor
        written: list[Tensor] = []
        left: dict[str, Tensor] = {}
        missed = moved = 0.0
        for name, size in sizes.items():
            old = _flat(known.get(name), size)

            def through(aim: Tensor, old: Tensor = old) -> Tensor:
                written.append(self._write(aim, old))
                return self._read(written[-1], old)

            new = _flat(message.tensors[name], size)
            applied, rest = with_error_feedback(new, memory.get(name), through)
            missed += float(rest.double().square().sum())
            moved += float((applied + rest - old).double().square().sum())
            if direction == "uplink":
                left[name] = rest
        if sizes:
            tensors[_PACKED] = torch.cat(written)
        scalars = {**message.scalars, "dwc/bits": self.bits, "dwc/fraction": float(self.fraction)}
        error = (missed / moved) ** 0.5 if moved else 0.0
        return CompressedMessage(Message(tensors, scalars), left, error)

    def unpack(
        self, message: Message, schema: Schema, direction: Direction, *, known: Mapping[str, Tensor]
    ) -> Message:
        """See `Codec`."""
        if direction not in self.directions:
            return message
        sizes = self._sizes(schema)
        tensors: dict[str, Tensor] = {}
        for name, field in schema.tensors.items():
            if self._by_rows(name, field):
                tensors[name] = self._unpack_rows(name, message.tensors, field)
            elif name not in sizes:
                tensors[name] = message.tensors[name]
        if sizes:
            lengths = [sum(self._parts(size)) for size in sizes.values()]
            parts = torch.split(message.tensors[_PACKED], lengths)
            for (name, size), data in zip(sizes.items(), parts, strict=True):
                field = schema.tensors[name]
                try:
                    new = self._read(data, _flat(known.get(name), size))
                except CodecError as error:
                    raise CodecError(f"tensor {name!r}: {error}") from error
                tensors[name] = new.view(field.shape).to(field.dtype)  # type: ignore[arg-type]
        tensors |= {k: t for k, t in message.tensors.items() if k in schema.optional}
        scalars = {k: v for k, v in message.scalars.items() if k in schema.scalars}
        return Message(dict(sorted(tensors.items())), scalars)

    def _pack_rows(self, name: str, rows: Tensor) -> dict[str, Tensor]:
        codes, steps = quantise_blocks(rows.flatten(), self.feature_bits, rows.shape[1])
        packed = pack_bits(codes.view(rows.shape), self.feature_bits)
        return {name + _ROWS: packed, name + _STEPS: steps}

    def _unpack_rows(self, name: str, tensors: Mapping[str, Tensor], field: TensorField) -> Tensor:
        rows, steps, width = tensors[name + _ROWS], tensors[name + _STEPS], field.shape[-1]
        assert width is not None
        if len(rows) != len(steps):
            raise CodecError(f"tensor {name!r}: {len(rows)} rows, {len(steps)} steps")
        try:
            codes = unpack_bits(rows, self.feature_bits, width)
            _check_steps(codes.flatten(), steps, bits=self.feature_bits, block=width)
        except ValueError as error:
            raise CodecError(f"tensor {name!r}: {error}") from error
        flat = dequantise_blocks(codes.flatten(), steps, self.feature_bits, width)
        return flat.view(-1, width)


def _check_steps(codes: Tensor, steps: Tensor, *, bits: int, block: int) -> None:
    """Check the step sizes (blocks,) of codes (N,), and that every bit of both has an effect.

    With a step size of zero any code means zero; only the code that `quantise_blocks` writes is
    accepted.

    Raises:
        CodecError: If a step size or a code is invalid.
    """
    if not bool((torch.isfinite(steps) & ~torch.signbit(steps)).all()):
        raise CodecError("a step that is negative or not finite")
    idle = (steps == 0).repeat_interleave(block)[: len(codes)]
    if bool((codes[idle] != 2 ** (bits - 1)).any()):
        raise CodecError("a code under a step of zero")


def _flat(tensor: Tensor | None, size: int) -> Tensor:
    """Return the values as a flat float32 tensor; zeros if nothing is known."""
    return torch.zeros(size) if tensor is None else tensor.detach().float().cpu().flatten()
