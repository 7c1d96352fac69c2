"""Reads the files that a manifest names, and caches what was decoded from them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from mlecs_lightning.data.decoding.files import VERSION, decode
from mlecs_lightning.data.decoding.shapes import Declared, Decoded, DecodeError
from mlecs_lightning.names import look_alike
from mlecs_lightning.settings import cache_dir
from mlecs_lightning.storage.cache import read_entry, write_entry

__all__ = ["DecodeCache", "Embedded", "OutsideRootError", "read_below"]

# Files are decoded in memory. 256 MiB hold 25 minutes of CD sound or an hour of a small video.
_MAX_BYTES = 2**28


@dataclass(frozen=True)
class Embedded:
    """A file inside a table.

    Attributes:
        read: Returns content and extension; raises as `read_below`.
    """

    read: Callable[[], tuple[bytes, str]]


class OutsideRootError(ValueError):
    """A path that could lead out of the folder that all files must be in."""


def read_below(root: Path, written: str, *, allowed: Sequence[Path] = ()) -> bytes:
    """Read a file that a manifest names.

    A manifest may come from a third party: it must not be able to put other files of this machine
    into a data set.

    Args:
        root: The folder of all files.
        written: The path in the manifest: relative to ``root``, with ``/``.
        allowed: Further folders that a symbolic link may lead into.

    Raises:
        OutsideRootError: If the path is absolute, contains ``..``, or a symbolic link leads out of
            the allowed folders.
        DecodeError: If there is no such file, or it is too large.
    """
    _check_relative(written)
    try:
        return _read(root, written, allowed)
    except (OutsideRootError, DecodeError):
        raise
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError
        raise DecodeError(f"cannot be read: {error}") from error
    except UnicodeEncodeError as error:
        raise DecodeError(
            "has letters that file names cannot have in this locale: set PYTHONUTF8=1"
        ) from error
    except ValueError as error:  # it contains a null byte
        raise DecodeError(f"is not a path: {error}") from error


def _check_relative(written: str) -> None:
    """Refuse absolute paths and ``..``, as any system would read them."""
    for flavour in (PurePosixPath(written), PureWindowsPath(written)):
        if flavour.anchor:
            raise OutsideRootError(
                "is not a relative path: write it as seen from data.init_args.root"
            )
        if ".." in flavour.parts:
            raise OutsideRootError("contains '..': all files must be below data.init_args.root")


def _read(root: Path, written: str, allowed: Sequence[Path]) -> bytes:
    path = (root / written).resolve()
    if not any(path.is_relative_to(each.resolve()) for each in (root, *allowed)):
        raise OutsideRootError(
            f"leads out of data.init_args.root by {_link(root, written)}; if its files may be "
            "read, add their folder to data.init_args.allowed_roots"
        )
    if not path.is_file():
        raise DecodeError(f"there is no such file{_like(root, written)}")
    if path.stat().st_size > _MAX_BYTES:
        raise DecodeError(f"is larger than {_MAX_BYTES // 2**20} MiB")
    return path.read_bytes()


def _like(root: Path, written: str) -> str:
    """Say that there is a file whose name looks the same, or differs in case alone."""
    place = root
    for part in PurePosixPath(written).parts:
        if not (place / part).exists():
            names = sorted(each.name for each in place.iterdir()) if place.is_dir() else []
            return look_alike(part, names)
        place = place / part
    return ""


def _link(root: Path, written: str) -> str:
    """Describe the first symbolic link of a path that leads out of ``root``."""
    inside, place = root.resolve(), root
    for part in PurePosixPath(written).parts:
        place = place / part
        if place.is_symlink() and not place.resolve().is_relative_to(inside):
            return f"the symbolic link {str(place)!r} -> {str(place.readlink())!r}"
    return "a symbolic link"


class DecodeCache:
    """Cache of decoded files, keyed by content, declared form and version of the decoders."""

    def __init__(self, folder: Path | None = None) -> None:
        """Set the folder.

        Args:
            folder: `mlecs_lightning.settings.cache_dir` by default.
        """
        self._folder = (folder or cache_dir()) / "manifest"

    def decode(self, data: bytes, suffix: str, declared: Declared) -> Decoded:
        """Decode as `mlecs_lightning.data.decoding.files.decode`, or return the cached result."""
        content = hashlib.sha256(data).hexdigest()
        later = ("standardise", "as", "max_tokens")  # what is done with the values afterwards
        options = {k: v for k, v in declared.to_dict().items() if k not in later}
        key = json.dumps([VERSION, suffix, options, content])
        digest = hashlib.sha256(key.encode()).hexdigest()
        path = self._folder / digest[:2] / f"{digest}.npz"
        if (kept := read_entry(path, key=key)) is not None:
            return _unpack(kept)
        decoded = decode(data, suffix, declared)
        write_entry(path, _pack(decoded), key=key)
        return decoded


def _pack(decoded: Decoded) -> bytes:
    content = io.BytesIO()
    facts = np.array([decoded.rate, *decoded.source])
    np.savez(content, values=decoded.values, facts=facts, changes=np.array(decoded.changes, str))
    return content.getvalue()


def _unpack(content: bytes) -> Decoded:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        rate, *source = arrays["facts"].tolist()
        return Decoded(arrays["values"], tuple(source), rate, tuple(arrays["changes"].tolist()))
