"""What is wrong with lines of a manifest together that are valid each on its own."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from mlecs_lightning.data.manifest.line import Line

__all__ = ["common_faults"]


def common_faults(lines: Sequence[Line]) -> list[str]:
    """Return what is wrong with lines that are valid each on its own."""
    return [*_repeated_ids(lines), *_owner_faults(lines), *_look_alike_faults(lines)]


def _repeated_ids(lines: Sequence[Line]) -> list[str]:
    faults = []
    first: dict[str, Line] = {}
    for line in lines:
        one = first.setdefault(line.id, line)
        if one is not line:
            faults.append(f"{line.where} (id {line.id!r}): {one.where} has the same id")
    return faults


def _look_alike_faults(lines: Sequence[Line]) -> list[str]:
    """Return names that look the same and are not: they would tear a client or group in two."""
    faults: dict[str, None] = {}
    for key in ("domain", "group"):
        first: dict[str, Line] = {}
        for line in lines:
            name = getattr(line, key)
            if key == "group" and name == line.id:
                continue
            one = first.setdefault(unicodedata.normalize("NFC", name).strip(), line)
            other = getattr(one, key)
            if other != name:
                what = line.owner if key == "domain" else key
                faults[
                    f"{line.where}: {what} {name!a} looks like {other!a} of {one.where}: write "
                    "both alike, in the form NFC and without blanks at the ends"
                ] = None
    return list(faults)


def _owner_faults(lines: Sequence[Line]) -> list[str]:
    """Check that all lines of split train name a client, or all a domain, or all none."""
    faults = []
    owners = {line.owner: line for line in lines if line.owner}
    if len(owners) == 2:
        named = " and ".join(f"{line.where} names a {owner}" for owner, line in owners.items())
        faults.append(f"a manifest may name clients or domains, not both: {named}")
    private = [line for line in lines if line.split == "train"]
    owner = next((line.owner for line in private if line.owner), None)
    for line in private:
        if owner and not line.owner:
            faults.append(
                f"{line.where} (id {line.id!r}): names no {owner}, but other lines of split train "
                "do"
            )
    return faults
