"""Bytes as Flower carries them."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, RecordDict

__all__ = ["data_of", "record_of"]

_NAME = "message"


def record_of(data: bytes) -> RecordDict:
    """Return a record with the bytes, as an array: Flower sends long arrays in pieces."""
    array = Array("uint8", (len(data),), "bytes", data)
    return RecordDict({_NAME: ArrayRecord({_NAME: array})})


def data_of(record: RecordDict) -> bytes:
    """Return the bytes of a record."""
    return bytes(record.array_records[_NAME][_NAME].data)
