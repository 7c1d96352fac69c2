"""Files that are written whole or not at all, and checked when they are read back.

Everything that a run leaves behind goes through here, so that a power cut, a full disk or a flipped
bit is found by the reader and never taken for content.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "DamagedFileError",
    "FullDiskError",
    "load_tensors",
    "replacing_folder",
    "save_tensors",
    "sha256_of",
    "write_atomically",
]

_CHUNK = 1 << 20


class DamagedFileError(ValueError):
    """A file does not hold what was written; says which, and what is wrong with it."""


class FullDiskError(OSError):
    """There is no room to write a file; says which, the bytes it needs and those that are free."""


def write_atomically(
    path: Path, content: bytes | str | Callable[[BinaryIO], None], *, sync: bool = True
) -> None:
    """Write a file so that whoever opens the path finds the old content or the new, never a part.

    The content goes to a temporary file of the same folder, which is synced and renamed. If
    anything fails, the temporary file is removed and the old content stays.

    Args:
        path: The file. Its folder has to exist.
        content: Bytes, text (written as UTF-8), or a function that writes to an open binary file.
        sync: Whether it has to survive a power cut; some ten milliseconds.

    Raises:
        FullDiskError: If the disk, or the user's quota of it, is full.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
    staging, written = Path(name), 0
    try:
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
            written = file.tell()
        staging.chmod(0o666 & ~_umask())  # mkstemp lets nobody else in
        staging.replace(path)
        if sync:
            _sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            known = len(content) if isinstance(content, bytes | str) else written
            raise _full(path, max(known, _size(staging)), error) from error
        raise
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``target`` when the block ends without an error.

    Args:
        target: Must not exist, or be an empty folder, when the block ends. Its parent is made.

    Raises:
        FullDiskError: If the disk, or the user's quota of it, is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-", suffix=".tmp"))
    try:
        yield staging
        for path in staging.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        staging.chmod(0o777 & ~_umask())  # mkdtemp lets nobody else in
        staging.rename(target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed = sum(_size(path) for path in staging.rglob("*"))
            raise _full(target, needed, error) from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def save_tensors(path: Path, value: Any) -> None:  # noqa: ANN401 - whatever torch saves
    """Write with `torch.save`, atomically.

    Raises:
        FullDiskError: If the disk is full.
    """
    import torch

    write_atomically(path, lambda file: torch.save(value, file))


def load_tensors(path: Path) -> Any:  # noqa: ANN401 - whatever torch saved
    """Read what `save_tensors` wrote: weights only, on the CPU, every byte checked.

    `torch.load` does not look at the checksums of its zip archive, so that a flipped bit would come
    back as a weight. They are checked first.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If it is not what was written.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise DamagedFileError(f"{str(path)!r} is damaged: {broken} fails its checksum")
        return torch.load(path, weights_only=True, map_location="cpu")
    except (FileNotFoundError, DamagedFileError):
        raise
    except Exception as error:  # zip, pickle and torch raise whatever they trip over
        reason = str(error).strip() or type(error).__name__
        raise DamagedFileError(
            f"{str(path)!r} is damaged, or is no file of this package: {reason}"
        ) from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _full(path: Path, needed: int, error: OSError) -> FullDiskError:
    free = shutil.disk_usage(path.parent).free
    return FullDiskError(
        error.errno,
        f"{str(path)!r} cannot be written: it needs more than {needed:,} bytes, {free:,} are free",
    )


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)  # a rename itself must survive a power cut, too
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
