"""Files that are written whole or not at all, and checked when they are read back.

Everything that a run leaves behind goes through here, so that a power cut, a full disk or a flipped
bit is found by the reader and never taken for content. Files of tensors carry checksums of their
own; those of other files are kept beside them, see `digests`.
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
"""No space on the device, the user's quota used up, a file longer than its limit."""


class DamagedFileError(ValueError):
    """A file does not hold what was written; says which, and what is wrong with it."""


class FullDiskError(OSError):
    """There is no room to write a file; says which, the bytes it needs and those that are free."""

    def __str__(self) -> str:
        """Return the message alone: it says in words what the number means."""
        return str(self.strerror)


def write_atomically(
    path: Path, content: bytes | str | Callable[[BinaryIO], object], *, sync: bool = True
) -> None:
    """Write a file so that whoever opens the path finds the old content or the new, never a part.

    The content goes to a temporary file of the same folder, which is synced and renamed. If
    anything fails, the temporary file is removed and the old content stays.

    Args:
        path: The file. Its folder has to exist.
        content: Bytes, text (written as UTF-8), or a function that writes to an open binary file;
            it is called a second time, to count its bytes, if there is no room for them.
        sync: Whether it must survive a power cut, too.

    Raises:
        FullDiskError: If the disk, or the user's quota of it, is full.
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
            staging.chmod(0o666 & ~_umask())  # mkstemp lets nobody else in
            staging.replace(path)
            if sync:
                _sync(path.parent)
        finally:
            staging.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path, *, over: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``target`` when the block ends without an error.

    Args:
        target: Its parent is made.
        over: Whether the new folder takes the place of one that is there. Otherwise ``target``
            must not exist, or be an empty folder, when the block ends.

    Raises:
        FullDiskError: If the disk, or the user's quota of it, is full.
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
        staging.chmod(0o777 & ~_umask())  # mkdtemp lets nobody else in
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
    """Say of an error inside that has no room for its cause which file it was, and what is free.

    Args:
        path: What is written inside.
        needed: Counts its bytes, as far as they are known.

    Raises:
        FullDiskError: In place of whatever the writer made of a full disk.
    """
    try:
        yield
    except FullDiskError:
        raise  # of a file inside a folder
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
    """Remove the temporary files and folders that a killed process has left in a folder.

    Only where no other process writes into it at the moment.
    """
    for path in sorted(folder.rglob(".*.tmp")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def save_tensors(path: Path, value: Any) -> None:  # noqa: ANN401 - whatever torch saves
    """Write with `torch.save`, atomically.

    Raises:
        FullDiskError: If the disk is full.
    """
    import torch

    write_atomically(path, lambda file: torch.save(value, file))


def load_tensors(path: Path) -> Any:  # noqa: ANN401 - whatever torch saved
    """Read what `save_tensors` wrote: weights only, on the CPU, every byte checked.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If it is not what was written.
    """
    import torch

    check_tensors(path)
    with _damage_of(path):
        return torch.load(path, weights_only=True, map_location="cpu")


def check_tensors(path: Path) -> None:
    """Check every byte of what `save_tensors` wrote, without loading it.

    `torch.load` does not look at the checksums of its zip archive, so that a flipped bit would come
    back as a weight.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If it is not what was written.
    """
    with _damage_of(path), zipfile.ZipFile(path) as archive:
        if broken := archive.testzip():
            raise ValueError(f"{broken} fails its checksum")


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """Call whatever a reader trips over damage of the file, with a reason that is never empty."""
    try:
        yield
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # zip, pickle and torch have one for each occasion
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


class _Counter(io.RawIOBase):
    """Takes bytes and keeps their number."""

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
    """Return the number of the system's error behind this one; 0 if there is none.

    torch raises a `RuntimeError` while it handles the system's error; safetensors and tokenizers,
    which are written in Rust, have one of their own that quotes it.
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
    """Sync a file or a folder: a rename itself must survive a power cut, too."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
