"""Atomic writing of files and folders, and reading with checksums.

All output of a run is written here, so a reader detects the effects of a power cut, a full disk or
a flipped bit. Tensor files contain checksums; for other files see `digests`.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "DamagedFileError",
    "FullDiskError",
    "check_tensors",
    "load_tensors",
    "naming_full_disk",
    "remove_leftovers",
    "replacing_folder",
    "save_tensors",
    "sha256_of",
    "write_atomically",
]

_CHUNK = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Disk full, quota exceeded, or file too large."""


class DamagedFileError(ValueError):
    """A file has changed since it was written; says which, and what is wrong."""


class FullDiskError(OSError):
    """The disk is full; says which file, and how many bytes it needs and are free."""

    def __str__(self) -> str:
        """Return the message without the error number."""
        return str(self.strerror)


def write_atomically(
    path: Path, content: bytes | str | Callable[[BinaryIO], object], *, sync: bool = True
) -> None:
    """Write a file atomically: a reader finds either the old or the new content.

    The content is written to a temporary file in the same folder, which is synced and renamed. On
    an error the temporary file is removed and the old content stays.

    Args:
        path: The file. Its folder must exist.
        content: Bytes, text (written as UTF-8), or a function that writes to an open binary file;
            if the disk is full, it is called again to count the bytes.
        sync: Whether the file must survive a power cut.

    Raises:
        FullDiskError: If the disk or the user's quota is full.
    """
    data = content.encode() if isinstance(content, str) else content
    write = data if callable(data) else lambda file: file.write(data)
    with naming_full_disk(path, needed=lambda: _count(write)):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
        staging = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            staging.chmod(0o666 & ~_umask())  # mkstemp permits only the owner
            staging.replace(path)
            if sync:
                _sync(path.parent)
        finally:
            staging.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path, *, over: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to ``target`` when the block ends without an error.

    Args:
        target: The folder. Its parent is created if missing.
        over: Whether to replace an existing folder. Otherwise ``target`` must not exist, or be
            empty, when the block ends.

    Raises:
        FullDiskError: If the disk or the user's quota is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-", suffix=".tmp"))
    aside = staging.with_suffix(".old.tmp")
    try:
        with naming_full_disk(target, needed=lambda: sum(map(_size, staging.rglob("*")))):
            yield staging
            for path in staging.rglob("*"):
                _sync(path)
            _sync(staging)
        staging.chmod(0o777 & ~_umask())  # mkdtemp permits only the owner
        if over and target.exists():
            target.rename(aside)
        staging.rename(target)
        _sync(target.parent)
    finally:
        if aside.exists() and not target.exists():
            aside.rename(target)
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def naming_full_disk(path: Path, *, needed: Callable[[], int]) -> Iterator[None]:
    """Convert an error of a full disk in the block to one that names the file and the free space.

    Args:
        path: The file or folder that the block writes.
        needed: Counts its bytes, as far as they are known.

    Raises:
        FullDiskError: In place of the error that the writer raised.
    """
    try:
        yield
    except FullDiskError:
        raise  # from a file inside the folder
    except Exception as error:
        number = _number(error)
        if number not in _FULL:
            raise
        free = shutil.disk_usage(_existing(path.parent)).free
        raise FullDiskError(
            number,
            f"{str(path)!r} cannot be written ({os.strerror(number)}): it needs at least "
            f"{needed():,} bytes, {free:,} are free; what was there before is whole",
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders that a killed process has left in a folder.

    No other process may be writing into the folder.
    """
    for path in sorted(folder.rglob(".*.tmp")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def save_tensors(path: Path, value: Any) -> None:  # noqa: ANN401 - anything torch saves
    """Write a value with `torch.save`, atomically.

    Raises:
        FullDiskError: If the disk is full.
    """
    import torch

    write_atomically(path, lambda file: torch.save(value, file))


def load_tensors(path: Path) -> Any:  # noqa: ANN401 - anything torch saved
    """Read what `save_tensors` wrote, weights only and on the CPU, after checking every byte.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If its content has changed.
    """
    import torch

    check_tensors(path)
    with _damage_of(path):
        return torch.load(path, weights_only=True, map_location="cpu")


def check_tensors(path: Path) -> None:
    """Check every byte of what `save_tensors` wrote, without loading it.

    `torch.load` ignores the checksums in its zip archive, so a flipped bit would become part of a
    weight.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If its content has changed.
    """
    with _damage_of(path), zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():
            raise ValueError(f"{broken} fails its checksum")


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """Convert any error of a reader to a `DamagedFileError` with a non-empty reason."""
    try:
        yield
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # zip, pickle and torch raise many types
        reason = str(error).strip() or type(error).__name__
        raise DamagedFileError(
            f"{str(path)!r} is damaged, or is no file of this package: {reason}"
        ) from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class _Counter(io.RawIOBase):
    """A binary file that only counts the bytes written to it."""

    count = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - any buffer
        size = memoryview(data).nbytes
        self.count += size
        return size


def _count(write: Callable[[Any], object]) -> int:
    counter = _Counter()
    write(counter)
    return counter.count


def _number(error: BaseException | None) -> int:
    """Return the errno of the system error that caused this one, or 0.

    torch raises a `RuntimeError` while handling the system error; safetensors and tokenizers, which
    are written in Rust, quote it in an error of their own.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if quoted := re.search(r"\(os error (\d+)\)", str(error)):
            return int(quoted[1])
        error = error.__cause__ or error.__context__
    return 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def _sync(path: Path) -> None:
    """Sync a file, or a folder so that a rename in it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
