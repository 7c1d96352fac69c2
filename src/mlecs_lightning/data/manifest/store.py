"""Where the files of a manifest lie, and what was decoded of them before."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from mlecs_lightning.data.decoding.files import VERSION, decode
from mlecs_lightning.data.decoding.shapes import Declared, Decoded, DecodeError
from mlecs_lightning.settings import cache_dir
from mlecs_lightning.storage.cache import read_entry, write_entry

__all__ = ["DecodeCache", "OutsideRootError", "read_below"]

# Files are decoded in memory. Twenty minutes of CD sound, an hour of a small video.
_MAX_BYTES = 2**28


class OutsideRootError(ValueError):
    """A path that could lead out of the folder in which all files have to lie."""


def read_below(root: Path, written: str, *, allowed: Sequence[Path] = ()) -> bytes:
    """Read a file that a manifest names.

    A manifest may come from somebody else than the machine's owner: it must not be able to put a
    file of the machine into a data set.

    Args:
        root: The folder in which all files lie.
        written: What stands in the manifest: a path relative to ``root``, with ``/``.
        allowed: Further folders in which the file may lie that a symbolic link leads to.

    Raises:
        OutsideRootError: If the path is absolute, has a ``..``, or a symbolic link leads out.
        DecodeError: If there is no such file, or it is too large.
    """
    for flavour in (PurePosixPath(written), PureWindowsPath(written)):
        if flavour.anchor:
            raise OutsideRootError(
                "is no relative path: write it as it is seen from data.init_args.root"
            )
        if ".." in flavour.parts:
            raise OutsideRootError("has a '..': files lie below data.init_args.root")
    try:
        path = (root / written).resolve()
        if not any(path.is_relative_to(each.resolve()) for each in (root, *allowed)):
            raise OutsideRootError(
                f"leads out of data.init_args.root by {_link(root, written)}; if its files may be "
                "read, name their folder under data.init_args.allowed_roots"
            )
        if not path.is_file():
            raise DecodeError("there is no such file")
        if path.stat().st_size > _MAX_BYTES:
            raise DecodeError(f"is larger than {_MAX_BYTES // 2**20} MiB")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError
        raise DecodeError(f"cannot be read: {error}") from error
    except UnicodeEncodeError as error:
        raise DecodeError(
            "has letters that this locale has not in names of files: set PYTHONUTF8=1"
        ) from error
    except ValueError as error:
        if isinstance(error, OutsideRootError | DecodeError):
            raise
        raise DecodeError(f"is no path: {error}") from error  # a null byte in it


def _link(root: Path, written: str) -> str:
    """Describe the first symbolic link on the way that leads out of a folder."""
    inside, place = root.resolve(), root
    for part in PurePosixPath(written).parts:
        place = place / part
        if place.is_symlink() and not place.resolve().is_relative_to(inside):
            return f"the symbolic link {str(place)!r} -> {str(place.readlink())!r}"
    return "a symbolic link"


class DecodeCache:
    """Decoded files, by their content, the declaration of their modality, and our version."""

    def __init__(self, folder: Path | None = None) -> None:
        """Say where they are kept.

        Args:
            folder: `mlecs_lightning.settings.cache_dir` by default.
        """
        self._folder = (folder or cache_dir()) / "manifest"

    def decode(self, data: bytes, suffix: str, declared: Declared) -> Decoded:
        """Return what `mlecs_lightning.data.decoding.files.decode` does, once for every content."""
        content = hashlib.sha256(data).hexdigest()
        options = {k: v for k, v in asdict(declared).items() if k != "standardise"}  # comes later
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
    np.savez(content, values=decoded.values, facts=np.array([decoded.rate, *decoded.source]))
    return content.getvalue()


def _unpack(content: bytes) -> Decoded:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        rate, *source = arrays["facts"].tolist()
        return Decoded(arrays["values"], tuple(source), rate)
