"""The lines of a manifest, read and checked; the files that they name are not touched here."""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from mlecs_lightning.errors import FaultList
from mlecs_lightning.storage.text_files import EncodingError, utf8

__all__ = ["UNNAMED", "Line", "Split", "raise_faults", "read_lines"]

Split = Literal["public", "train", "val", "test"]

UNNAMED = "unnamed"
"""Domain of the samples that name neither client nor domain."""

_KEYS = (
    *("id", "split", "client", "domain", "group", "modalities"),
    *("instruction", "target", "targets", "meta"),
)


@dataclass(frozen=True)
class Line:
    """One sample, as it is written.

    Attributes:
        where: File and line, for messages.
        root: Folder of the paths.
        id: Unique in all files.
        split: To which pool it belongs.
        owner: ``client`` or ``domain``: which of the two it names; ``None`` for neither.
        domain: The client or domain that it names, or `UNNAMED`.
        group: The recording that it is a part of.
        modalities: For each modality a path or inline numbers.
        instruction: What the model is asked; ``None`` for that of the data set.
        targets: The reference sentences; none where nobody knows them.
    """

    where: str
    root: Path
    id: str
    split: Split
    owner: Literal["client", "domain"] | None
    domain: str
    group: str
    modalities: dict[str, Any]
    instruction: str | None
    targets: tuple[str, ...]


def read_lines(
    files: Sequence[Path], root: Path | None, modalities: Collection[str]
) -> tuple[list[Line], list[str]]:
    """Read manifests and say what is wrong with their lines.

    Args:
        files: JSON lines, or Parquet by the ending ``.parquet``.
        root: Folder of the paths; that of each manifest by default.
        modalities: The declared ones.

    Returns:
        The sound lines, in their order, and the faults of the others and of all together.

    Raises:
        FileNotFoundError: If there is no such manifest.
        ImportError: If one is Parquet and pyarrow is not installed.
    """
    lines: list[Line] = []
    faults: list[str] = []
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"data.init_args.file: there is no file {str(file)!r}")
        alone = [other.name for other in files].count(file.name) == 1
        rows = _parquet_rows if file.suffix.lower() == ".parquet" else _json_rows
        for number, row in rows(file):
            where = f"{file.name if alone else file}:{number}"
            if isinstance(row, str):
                faults.append(f"{where}: {row}")
                continue
            wrong = _faults(row, modalities)
            if wrong:
                name = f" (id {row['id']!r})" if "id" in row else ""
                faults += [f"{where}{name}: {fault}" for fault in wrong]
            else:
                lines.append(_line(row, where, root or file.parent))
    return lines, faults + _common_faults(lines)


# One line -----------------------------------------------------------------------------------------


def _json_rows(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield number and content of each line that is not blank, or what is wrong with it."""
    with file.open("rb") as content:
        for number, line in enumerate(content, start=1):
            if not line.strip():
                continue
            try:
                text = utf8(line, line=number)
                row = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
            except EncodingError as error:
                yield number, str(error)
            except (ValueError, RecursionError) as error:
                yield number, f"is no JSON: {error}"
            else:
                is_object = isinstance(row, dict)
                yield number, row if is_object else f"expected a JSON object, got {str(row)[:60]!r}"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = sorted({key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i])})
        raise ValueError(f"written twice, and the first would be lost: {twice}")
    return values


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _parquet_rows(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield number and content of each row; a column ``modalities`` is a struct, or JSON text."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError(
            f"data.init_args.file: {file.name} is Parquet and needs pyarrow: "
            "pip install mlecs_lightning[parquet]; JSON lines need nothing"
        ) from error
    for number, row in enumerate(parquet.read_table(file).to_pylist(), start=1):
        # A table has every column in every row.
        there = {key: value for key, value in row.items() if value is not None}
        if isinstance(there.get("modalities"), str):
            try:
                there["modalities"] = json.loads(
                    there["modalities"], object_pairs_hook=_once, parse_constant=_refuse
                )
            except (ValueError, RecursionError) as error:
                yield number, f"modalities: is no JSON: {error}"
                continue
        yield number, there


def _faults(row: Mapping[str, Any], modalities: Collection[str]) -> list[str]:
    """Say what is wrong with a line by itself."""
    faults = []
    if unknown := [key for key in row if key not in _KEYS]:
        faults.append(f"unknown keys {unknown}, known: {list(_KEYS)}; put notes under 'meta'")
    if not _is_name(row.get("id")):
        faults.append(f"id: expected a text or a whole number, got {row.get('id')!r}")
    if row.get("split") not in get_args(Split) and not _is_unlabelled(row):
        faults.append(f"split: expected one of {list(get_args(Split))}, got {row.get('split')!r}")
    for key in ("client", "domain", "group"):
        if row.get(key) is not None and not _is_name(row[key]):
            faults.append(f"{key}: expected a text or a whole number, got {row[key]!r}")
    if row.get("client") is not None and row.get("domain") is not None:
        faults.append("client and domain: expected one of the two, got both")
    if row.get("client") is not None and row.get("split") == "public":
        faults.append(f"client: a public sample is no client's, got {row['client']!r}")
    faults += _text_faults(row)
    inputs = row.get("modalities")
    if not isinstance(inputs, Mapping):
        return [*faults, f"modalities: expected names and their values, got {inputs!r}"]
    if unknown := [name for name in inputs if name not in modalities]:
        faults.append(f"modalities: {unknown} are none of {list(modalities)}")
    if all(value is None for value in inputs.values()):
        faults.append(f"modalities: expected at least one of {list(modalities)}, got none")
    return faults


def _is_unlabelled(row: Mapping[str, Any]) -> bool:
    """Return whether a line has no target and needs none: it is public, or only to be answered."""
    nothing = all(row.get(key) is None for key in ("target", "targets"))
    return nothing and row.get("split") in (None, "test", "public")


def _is_name(value: object) -> bool:
    return bool(value.strip()) if isinstance(value, str) else type(value) is int


def _text_faults(row: Mapping[str, Any]) -> list[str]:
    faults = []
    asked = row.get("instruction")
    if asked is not None and not (isinstance(asked, str) and asked.strip()):
        faults.append(f"instruction: expected a text, got {asked!r}")
    one, several = row.get("target"), row.get("targets")
    if _is_unlabelled(row):
        return faults
    if (one is None) == (several is None):
        faults.append(
            "expected either target, a text, or targets, a list of texts; only a line of split "
            "public, or of test, to be answered by predict, may lack both"
        )
        return faults
    texts = [one] if several is None else several
    if not isinstance(texts, list) or not texts:
        faults.append(f"targets: expected a list of texts, got {texts!r}")
    elif not all(isinstance(text, str) and text.strip() for text in texts):
        faults.append(f"target: expected a text that is not blank, got {texts!r}")
    return faults


def _line(row: Mapping[str, Any], where: str, root: Path) -> Line:
    owner = next((k for k in ("client", "domain") if row.get(k) is not None), None)
    name, group, target = str(row["id"]), row.get("group"), row.get("target")
    targets = row.get("targets") or [] if target is None else [target]
    return Line(
        where=where,
        root=root,
        id=name,
        split=row.get("split") or "test",
        owner=owner,  # type: ignore[arg-type]
        domain=UNNAMED if owner is None else str(row[owner]),
        group=name if group is None else str(group),
        modalities={m: value for m, value in row["modalities"].items() if value is not None},
        instruction=row.get("instruction"),
        targets=tuple(text.strip() for text in targets),
    )


# All lines ----------------------------------------------------------------------------------------


def _common_faults(lines: Sequence[Line]) -> list[str]:
    """Say what is wrong with lines that are sound each by itself."""
    faults = []
    first: dict[str, str] = {}
    for line in lines:
        if first.setdefault(line.id, line.where) != line.where:
            faults.append(f"{line.where} (id {line.id!r}): {first[line.id]} has the same id")
    owners = {line.owner: line for line in lines if line.owner}
    if len(owners) == 2:
        named = " and ".join(f"{line.where} names a {owner}" for owner, line in owners.items())
        faults.append(f"one manifest names clients or domains, not both: {named}")
    private = [line for line in lines if line.split == "train"]
    owner = next((line.owner for line in private if line.owner), None)
    faults += [
        f"{line.where} (id {line.id!r}): names no {owner}, as other lines of split train do"
        for line in private
        if owner and not line.owner
    ]
    return faults


def raise_faults(faults: Sequence[str], *, limit: int = 20) -> None:
    """Raise the first faults in one message, and count the others.

    Raises:
        ConfigurationError: If there are any.
    """
    shown = FaultList(faults[:limit])
    if len(faults) > limit:
        shown.append(f"... and {len(faults) - limit:,} more")
    shown.raise_any(title=f"the manifest has {len(faults):,} faults:")
