"""SHA-256 digests of files without a checksum of their own: text, JSON, safetensors.

The digests of a folder are in its file ``SHA256SUMS``, in the format of ``sha256sum``, so
``sha256sum --check SHA256SUMS`` checks a folder without this package. A file without a line there
is not checked: an earlier version wrote it, it is still being written, or its line was deleted
after a change.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlecs_lightning.storage.files import DamagedFileError, sha256_of, write_atomically

__all__ = [
    "SUMS",
    "check_folder",
    "forget_digest",
    "load_safetensors",
    "read_checked",
    "record_digest",
    "seal_folder",
    "write_checked",
]

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def write_checked(path: Path, content: bytes | str) -> None:
    """Write a file atomically and record its digest.

    Raises:
        FullDiskError: If the disk is full.
    """
    data = content.encode() if isinstance(content, str) else content
    digest = hashlib.sha256(data).hexdigest()
    if _digests(path.parent).get(path.name) != digest:
        forget_digest(path)  # a process killed in between must leave no wrong digest
    write_atomically(path, data)
    _record(path, digest)


def record_digest(path: Path) -> None:
    """Record the digest of a file that another library has written."""
    _record(path, sha256_of(path))


def forget_digest(path: Path) -> None:
    """Remove the digest of a file that is about to change."""
    digests = _digests(path.parent)
    if digests.pop(path.name, None) is not None:
        _write(path.parent, digests)


def seal_folder(folder: Path) -> None:
    """Record the digests of all files in a new folder, including subfolders.

    The ``README.md`` is left out, since people may edit it.
    """
    digests = {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (SUMS, "README.md")
    }
    _write(folder, digests)


def read_checked(path: Path) -> bytes:
    """Return the content of a file after checking its digest, if there is one.

    Raises:
        OSError: If it cannot be read.
        DamagedFileError: If its content has changed.
    """
    data = path.read_bytes()
    _compare(path.parent, path.name, hashlib.sha256(data).hexdigest())
    return data


def check_folder(folder: Path, *, below: str = "") -> None:
    """Check all files of a folder that have a digest.

    Args:
        folder: The folder with the digests.
        below: Check only paths that begin with this.

    Raises:
        DamagedFileError: If a file is missing, or its content has changed.
    """
    for name in _digests(folder):
        if name.startswith(below):
            try:
                digest = sha256_of(folder / name)
            except OSError as error:
                raise DamagedFileError(
                    f"{str(folder / name)!r}, named in {SUMS}, cannot be read: {error}"
                ) from error
            _compare(folder, name, digest)


def load_safetensors(path: Path) -> dict[str, Any]:
    """Read the tensors of a safetensors file.

    Raises:
        OSError: If it cannot be read.
        DamagedFileError: If its content has changed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = read_checked(path)
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedFileError(f"{str(path)!r} is damaged: {error}") from error


def _compare(folder: Path, name: str, digest: str) -> None:
    if _digests(folder).get(name, digest) != digest:
        raise DamagedFileError(
            f"{str(folder / name)!r} is not what was written: its SHA-256 is another than in {SUMS}"
            " beside it. Take it from a copy, or, if it was changed on purpose, delete its line in "
            f"{str(folder / SUMS)!r}"
        )


def _digests(folder: Path) -> dict[str, str]:
    """Return the digests of a folder by file name.

    Raises:
        DamagedFileError: If ``SHA256SUMS`` is malformed.
    """
    path = folder / SUMS
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise DamagedFileError(
                f"{str(path)!r} is damaged: line {number}, {line!r:.80}, is no digest and name; "
                "delete the line, and the file that it is of is not checked"
            )
        found[match[2]] = match[1]
    return found


def _write(folder: Path, digests: Mapping[str, str]) -> None:
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    write_atomically(folder / SUMS, text)


def _record(path: Path, digest: str) -> None:
    digests = _digests(path.parent)
    if digests.get(path.name) != digest:
        _write(path.parent, digests | {path.name: digest})
