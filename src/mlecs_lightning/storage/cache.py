"""Cache entries with a checksum: a damaged entry counts as missing.

A cache must never change a result. So each entry ends with the SHA-256 of its key and content. An
entry with a flipped bit, a truncated one, or one of an earlier version or another key is computed
and written again.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from mlecs_lightning.storage.files import write_atomically

__all__ = ["read_entry", "seal", "unseal", "write_entry"]

_LENGTH = hashlib.sha256().digest_size


def seal(content: bytes, *, key: str) -> bytes:
    """Return content followed by its checksum.

    Example:
        >>> unseal(seal(b"value", key="a"), key="a")
        b'value'
        >>> unseal(seal(b"value", key="a"), key="b") is None
        True
    """
    return content + _checksum(content, key)


def unseal(sealed: object, *, key: str) -> bytes | None:
    """Return the content that was sealed under a key, or ``None`` if the checksum is wrong."""
    if not isinstance(sealed, bytes):
        return None
    content = sealed[:-_LENGTH]
    return content if sealed[-_LENGTH:] == _checksum(content, key) else None


def read_entry(path: Path, *, key: str) -> bytes | None:
    """Return what `write_entry` wrote, or ``None`` if it is missing or damaged."""
    with suppress(OSError):
        return unseal(path.read_bytes(), key=key)
    return None


def write_entry(path: Path, content: bytes, *, key: str) -> None:
    """Write an entry to a file; errors of the disk are ignored, since a cache is optional."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not synced: after a power cut the checksum tells.
        write_atomically(path, seal(content, key=key), sync=False)


def _checksum(content: bytes, key: str) -> bytes:
    digest = hashlib.sha256(hashlib.sha256(key.encode()).digest())
    digest.update(content)
    return digest.digest()
