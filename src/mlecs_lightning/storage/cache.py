"""Entries of a cache that carry a checksum: one that is damaged counts as missing.

What is kept of a computation must never change its result. So each entry ends with the SHA-256 of
its key and its content: a flipped bit, half a file, an entry of an earlier version or of another
key are computed again and written anew.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from mlecs_lightning.storage.files import write_atomically

__all__ = ["read_entry", "seal", "unseal", "write_entry"]

_LENGTH = hashlib.sha256().digest_size


def seal(content: bytes, *, key: str) -> bytes:
    """Return a content with its checksum behind it.

    Example:
        >>> unseal(seal(b"value", key="a"), key="a")
        b'value'
        >>> unseal(seal(b"value", key="a"), key="b") is None
        True
    """
    return content + _checksum(content, key)


def unseal(sealed: object, *, key: str) -> bytes | None:
    """Return the content that was sealed under a key, ``None`` if this is not it."""
    if not isinstance(sealed, bytes):
        return None
    content = sealed[:-_LENGTH]
    return content if sealed[-_LENGTH:] == _checksum(content, key) else None


def read_entry(path: Path, *, key: str) -> bytes | None:
    """Return what `write_entry` wrote, ``None`` if it is missing or damaged."""
    with suppress(OSError):
        return unseal(path.read_bytes(), key=key)
    return None


def write_entry(path: Path, content: bytes, *, key: str) -> None:
    """Keep a content in a file of its own. A full or read-only disk makes it slow, not wrong."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not synced: what a power cut breaks fails its checksum.
        write_atomically(path, seal(content, key=key), sync=False)


def _checksum(content: bytes, key: str) -> bytes:
    digest = hashlib.sha256(hashlib.sha256(key.encode()).digest())
    digest.update(content)
    return digest.digest()
