"""Features of frozen encoders, kept on disk: what does not train is computed once.

One SQLite file for each encoder, in ``features`` of `cache_dir`: several processes may read and
write it, a killed one leaves no half row, and it may be deleted at any time. A row carries the
checksum of its key and its value, so that one that is damaged is computed again; a file that SQLite
cannot read is begun anew.
"""

from __future__ import annotations

import hashlib
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path

import torch
from torch import Tensor

from mlecs_lightning.settings import cache_dir
from mlecs_lightning.storage.cache import seal, unseal

__all__ = ["cached_features", "fingerprint"]

_WAIT = 60.0
"""Seconds to wait for another process that writes."""
_AT_ONCE = 500
"""Keys of one query; SQLite takes at least 999."""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""What SQLite says of a file with flipped bits: malformed, no database, no such table or column."""


def cached_features(
    compute: Callable[[Tensor], Tensor], inputs: Tensor, *, identity: str, limit: int
) -> Tensor:
    """Return the features of each row, computing only those of rows that nobody has seen yet.

    A row is known by the SHA-256 of its bytes, so that equal content in another sample, client or
    run counts as seen. New rows are computed one by one: a feature is then a function of its row
    alone, to the last bit, whatever batch it first came in; batched kernels round differently with
    the size of the batch. Our choice: the price is paid once a row.

    Where the file cannot be read or written, all is computed, with a warning; a damaged file is
    removed.

    Args:
        compute: Maps (1, ...) to (1, F); must not depend on anything but ``identity`` and the row.
        inputs: (B, ...).
        identity: What the features depend on beside the row: weights, precision, preparation.
        limit: Largest size of the file in bytes. Rows that come when it is full are not kept.

    Returns:
        (B, F) float32, on the device of ``inputs``.
    """
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    path = cache_dir() / "features" / f"{name}.sqlite"
    keys = [fingerprint([row]) for row in inputs.cpu()]
    known = _read(path, set(keys))
    fresh: dict[bytes, Tensor] = {}
    for row, key in enumerate(keys):
        if key not in known and key not in fresh:
            fresh[key] = compute(inputs[row : row + 1])[0].float().cpu()
    if fresh:
        _write(path, fresh, limit=limit)
    features = known | fresh
    return torch.stack([features[key] for key in keys]).to(inputs.device)


def fingerprint(tensors: Iterable[Tensor]) -> bytes:
    """Return the SHA-256 of shapes, types and contents."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(content.numpy().data)
    return digest.digest()


def _read(path: Path, keys: set[bytes]) -> dict[bytes, Tensor]:
    if not path.is_file() or path.stat().st_size == 0:  # another process has just begun it
        return {}
    asked, rows = list(keys), []
    try:
        with closing(sqlite3.connect(path, timeout=_WAIT)) as file:
            file.text_factory = bytes  # a flipped bit makes texts of bytes
            for start in range(0, len(asked), _AT_ONCE):
                part = asked[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                rows += file.execute(
                    f"SELECT key, value FROM features WHERE key IN ({marks})", part
                ).fetchall()
    except sqlite3.Error as error:
        _complain(path, "read", error)
        return {}
    known = {}
    for key, sealed in rows:
        if key in keys and (value := unseal(sealed, key=_name(path, key))) is not None:
            known[key] = torch.frombuffer(bytearray(value), dtype=torch.float32)
    return known


def _write(path: Path, rows: Mapping[bytes, Tensor], *, limit: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.stat().st_size > limit:
            return
        with closing(sqlite3.connect(path, timeout=_WAIT)) as file, file:
            file.execute("CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, value BLOB)")
            file.executemany(
                "INSERT OR REPLACE INTO features VALUES (?, ?)",
                [
                    (key, seal(value.numpy().tobytes(), key=_name(path, key)))
                    for key, value in rows.items()
                ],
            )
    except (sqlite3.Error, OSError) as error:
        _complain(path, "write", error)


def _name(path: Path, key: bytes) -> str:
    """Return what a row is sealed for: the encoder, which the file is named by, and the input."""
    return f"{path.stem}/{key.hex()}"


def _complain(path: Path, verb: str, error: Exception) -> None:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
        with suppress(OSError):
            path.unlink()
    warnings.warn(
        f"cannot {verb} the cached features in {path}: {error}; they are computed again",
        stacklevel=2,
    )
