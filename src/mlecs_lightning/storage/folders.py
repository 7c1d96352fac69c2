"""Numbered folders: ``version_k`` of a run, ``abandoned_k`` of a version.

Other names, such as ``version_0_backup``, are ignored.
"""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

__all__ = ["claim_folder", "numbered_folders"]


def numbered_folders(parent: Path, stem: str) -> list[Path]:
    """Return the folders ``<stem>_k`` of a parent in the order of k.

    Args:
        parent: The parent; it may be missing.
        stem: ``version`` or ``abandoned``.
    """
    name = re.compile(rf"{stem}_(0|[1-9][0-9]*)")
    found = {
        int(match[1]): path
        for path in parent.glob(f"{stem}_*")
        if (match := name.fullmatch(path.name)) and path.is_dir()
    }
    return [found[number] for number in sorted(found)]


def claim_folder(parent: Path, stem: str) -> Path:
    """Create the next folder ``<stem>_k``; no other process can claim the same one.

    Args:
        parent: Created if missing.
        stem: ``version`` or ``abandoned``.
    """
    parent.mkdir(parents=True, exist_ok=True)
    taken = numbered_folders(parent, stem)
    first = int(taken[-1].name.rpartition("_")[2]) + 1 if taken else 0
    for number in count(first):
        path = parent / f"{stem}_{number}"
        try:
            path.mkdir()
        except FileExistsError:  # another process was faster, or it is a file
            continue
        return path
    raise AssertionError("numbers do not end")
