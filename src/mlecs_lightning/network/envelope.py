"""What a server and a device tell each other: a header in JSON, followed by messages in bytes.

Our choice: the messages are those of the channel, byte for byte; the header says what they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["MALFORMED", "Envelope", "EnvelopeError"]

_PREFIX = 4
_MAX_HEADER = 2**20


class EnvelopeError(ValueError):
    """Bytes that are no envelope; says why."""


MALFORMED = (ValueError, TypeError, KeyError, OverflowError)
"""What reading a header raises that is not of the expected form; a number in it may be infinite."""


class Envelope(NamedTuple):
    """A header and its parts.

    Attributes:
        kind: What it is, such as ``offer``.
        header: Plain values.
        parts: Messages in bytes.
    """

    kind: str
    header: Mapping[str, Any] = {}
    parts: Sequence[bytes] = ()

    def to_bytes(self) -> bytes:
        """Return the length of the header, the header and the parts."""
        sizes = [len(part) for part in self.parts]
        text = json.dumps({"kind": self.kind, "sizes": sizes, **self.header}).encode()
        return b"".join([len(text).to_bytes(_PREFIX, "little"), text, *self.parts])

    @classmethod
    def of(cls, data: bytes) -> Envelope:
        """Read what `to_bytes` returned.

        Raises:
            EnvelopeError: If they are no envelope.
        """
        length = int.from_bytes(data[:_PREFIX], "little")
        end = _PREFIX + length
        if length > _MAX_HEADER or len(data) < end:
            raise EnvelopeError(f"{len(data)} bytes that do not begin with a header")
        try:
            header = json.loads(data[_PREFIX:end])
            kind, sizes = str(header.pop("kind")), [int(size) for size in header.pop("sizes")]
        except (*MALFORMED, AttributeError, RecursionError) as error:
            raise EnvelopeError(f"unreadable header: {type(error).__name__}") from error
        if any(size < 0 for size in sizes) or end + sum(sizes) != len(data):
            raise EnvelopeError(f"parts of {sizes} bytes in {len(data) - end}")
        parts = []
        for size in sizes:
            parts.append(data[end : end + size])
            end += size
        return cls(kind, header, parts)
