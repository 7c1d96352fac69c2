"""Folders with numbers: ``version_k`` of a run, ``abandoned_k`` of a version.

Whatever else lies beside them, such as ``version_0_backup``, belongs to somebody else.
"""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

__all__ = ["claim_folder", "numbered_folders"]


def numbered_folders(parent: Path, stem: str) -> list[Path]:
    """Return the folders ``<stem>_k`` of a parent, by k; none if there is no parent.

    Args:
        parent: Where they are.
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
    """Make the next folder ``<stem>_k``, which no other process can claim as well.

    Args:
        parent: Made if missing.
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
