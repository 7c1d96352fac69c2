"""Caches the features of frozen encoders on disk, so that they are computed once.

There is one SQLite file per encoder in the folder ``features`` of `cache_dir`. Several processes
may read and write it, a killed process leaves no partial row, and it may be deleted at any time.
Each row has a checksum of its key and value: a damaged row is computed again. A file that SQLite
cannot read is replaced.
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
"""Seconds to wait for another process that is writing."""
_KEYS_PER_QUERY = 500
"""SQLite accepts at least 999."""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""Errors for a damaged file: malformed, not a database, no such table or column."""


def cached_features(
    compute: Callable[[Tensor], Tensor], inputs: Tensor, *, identity: str, limit: int
) -> Tensor:
    """Return the features of each row, and compute only those that are not cached.

    Rows are identified by the SHA-256 of their content, so equal rows of other samples, clients or
    runs are found. New rows are computed one at a time, because batched kernels round differently
    for different batch sizes: this way a feature depends on its row only, to the last bit, and not
    on the batch. Our choice, as the cost occurs once per row.

    If the file cannot be read or written, all features are computed, with a warning; a damaged file
    is removed.

    Args:
        compute: Maps (1, ...) to (1, F); must depend on nothing but ``identity`` and the row.
        inputs: (B, ...).
        identity: Everything else that features depend on: weights, precision, preparation.
        limit: Maximum size of the file in bytes; no rows are added beyond it.

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
    if not path.is_file() or path.stat().st_size == 0:  # another process has just created it
        return {}
    asked, rows = list(keys), []
    try:
        with closing(sqlite3.connect(path, timeout=_WAIT)) as file:
            file.text_factory = bytes  # a flipped bit may turn bytes into text
            for start in range(0, len(asked), _KEYS_PER_QUERY):
                part = asked[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(part))
                rows += file.execute(
                    f"SELECT key, value FROM features WHERE key IN ({marks})", part
                ).fetchall()
    except sqlite3.Error as error:
        _warn(path, "read", error)
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
        _warn(path, "write", error)


def _name(path: Path, key: bytes) -> str:
    """Return what the checksum of a row covers besides its value: encoder (file name) and input."""
    return f"{path.stem}/{key.hex()}"


def _warn(path: Path, verb: str, error: Exception) -> None:
    """Warn of an error, and remove the file if it is damaged."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
        with suppress(OSError):
            path.unlink()
    warnings.warn(
        f"cannot {verb} the cached features in {path}: {error}; they are computed again",
        stacklevel=2,
    )
