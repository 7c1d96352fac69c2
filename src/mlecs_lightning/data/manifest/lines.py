"""Reads and checks the lines of a manifest, but not the files that they name."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, get_args

from mlecs_lightning.data.manifest.line import UNNAMED, Line, Split
from mlecs_lightning.data.manifest.line_sets import common_faults
from mlecs_lightning.errors import FaultList
from mlecs_lightning.extras import Need, require
from mlecs_lightning.names import look_alike
from mlecs_lightning.storage.text_files import EncodingError, utf8

__all__ = ["RowTable", "lines_of", "raise_faults", "read_lines"]

_KEYS = (
    *("id", "split", "client", "domain", "group", "modalities"),
    *("instruction", "target", "targets", "meta"),
)


class RowTable(NamedTuple):
    """The rows of one source, before they are checked.

    Attributes:
        label: Name of the source, for messages.
        root: Folder that paths are relative to.
        rows: The number of each row, and its content or what is wrong with it.
    """

    label: str
    root: Path
    rows: Iterable[tuple[int, dict[str, Any] | str]]


def read_lines(
    files: Sequence[Path],
    root: Path | None,
    modalities: Collection[str],
    *,
    draws_split: bool = False,
) -> tuple[list[Line], list[str]]:
    """Read and check the lines of one or several manifests.

    Args:
        files: JSON lines, or Parquet if the name ends in ``.parquet``.
        root: Folder that paths are relative to; that of each manifest by default.
        modalities: The declared modalities.
        draws_split: Whether a line with a target may lack a split.

    Returns:
        The valid lines in order, and one message for each fault of the others, and of the valid
        lines taken together.

    Raises:
        FileNotFoundError: If a manifest does not exist.
        ImportError: If a manifest is Parquet and pyarrow is not installed.
    """
    tables = []
    names = [file.name for file in files]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"data.init_args.file: there is no file {str(file)!r}")
        label = file.name if names.count(file.name) == 1 else str(file)
        rows = _parquet_rows if file.suffix.lower() == ".parquet" else _json_rows
        tables.append(RowTable(label, root or file.parent, rows(file)))
    return lines_of(tables, modalities, draws_split=draws_split)


def lines_of(
    tables: Iterable[RowTable], modalities: Collection[str], *, draws_split: bool = False
) -> tuple[list[Line], list[str]]:
    """Check rows; see `read_lines`."""
    lines: list[Line] = []
    faults: list[str] = []
    for label, root, rows in tables:
        for number, row in rows:
            where = f"{label}:{number}"
            if isinstance(row, str):
                faults.append(f"{where}: {row}")
            elif wrong := _line_faults(row, modalities, draws_split=draws_split):
                name = f" (id {row['id']!r})" if "id" in row else ""
                faults += [f"{where}{name}: {fault}" for fault in wrong]
            else:
                lines.append(_line(row, where, root))
    return lines, faults + common_faults(lines)


# Files --------------------------------------------------------------------------------------------


def _json_rows(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the number of each line that is not blank, and its content or what is wrong with it."""
    if fault := _form_fault(file):
        yield 1, fault
        return
    with file.open("rb") as content:
        for number, line in enumerate(content, start=1):
            if not line.strip():
                continue
            try:
                row = _json(utf8(line, line=number))
            except EncodingError as error:
                yield number, str(error)
            except (ValueError, RecursionError) as error:
                yield number, f"is not valid JSON: {error}"
            else:
                is_object = isinstance(row, dict)
                yield number, row if is_object else f"expected a JSON object, got {str(row)[:60]!r}"


def _form_fault(file: Path) -> str | None:
    """Say what is wrong with a whole file: another encoding, or JSON that is not one line a sample.

    One message in place of one for every line.
    """
    with file.open("rb") as content:
        head = content.read(2000)
    try:
        text = utf8(head, line=1).strip()
    except EncodingError as error:
        if "UTF-16" in str(error) or "UTF-32" in str(error):
            return str(error)
        # A letter may be cut in two at the end, or only one line be wrong.
        text = head.decode("utf-8-sig", errors="ignore").strip()
    new = file.with_suffix(".jsonl").name
    new = new if new != file.name else f"new-{new}"
    if text.startswith("["):
        return (
            "is one JSON array, but a manifest has one JSON object in each line, without commas "
            f"between: jq -c '.[]' {file.name} > {new}"
        )
    if text == "{" or text.startswith(("{\n", "{\r")):
        return (
            "is the beginning of a JSON object, but a manifest has a whole one in each line: "
            f"jq -c . {file.name} > {new}"
        )
    return None


def _json(text: str) -> Any:  # noqa: ANN401 - JSON
    """Parse JSON strictly: no key twice, no NaN or Infinity."""
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(key for key, _ in pairs)
    repeated = sorted(key for key, count in counts.items() if count > 1)
    if repeated:
        raise ValueError(f"written twice, and the first would be lost: {repeated}")
    return dict(pairs)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _parquet_rows(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield the number and content of each row; ``modalities`` is a struct or JSON text."""
    what = f"data.init_args.file: {file.name} is Parquet and"
    require(Need(what, "parquet", otherwise="write JSON lines"))
    parquet = importlib.import_module("pyarrow.parquet")
    for number, row in enumerate(parquet.read_table(file).to_pylist(), start=1):
        # In a table every row has every column: null stands for a key that is left out.
        given = {key: value for key, value in row.items() if value is not None}
        if isinstance(given.get("modalities"), str):
            try:
                given["modalities"] = _json(given["modalities"])
            except (ValueError, RecursionError) as error:
                yield number, f"modalities: is not valid JSON: {error}"
                continue
        yield number, given


# One line -----------------------------------------------------------------------------------------


def _line_faults(
    row: Mapping[str, Any], modalities: Collection[str], *, draws_split: bool
) -> list[str]:
    """Return what is wrong with a line on its own."""
    unknown = [key for key in row if key not in _KEYS]
    faults = []
    if unknown:
        faults.append(f"unknown keys {unknown}, known: {list(_KEYS)}; put notes under 'meta'")
    faults += _name_faults(row)
    faults += _split_faults(row, draws_split=draws_split)
    faults += _instruction_faults(row)
    faults += _target_faults(row)
    faults += _modality_faults(row.get("modalities"), modalities)
    return faults


def _split_faults(row: Mapping[str, Any], *, draws_split: bool) -> list[str]:
    split = row.get("split")
    if split in get_args(Split) or _is_unlabelled(row) or (split is None and draws_split):
        return []
    more = "; data.init_args.split can draw one" if split is None else ""
    return [f"split: expected one of {list(get_args(Split))}, got {split!r}{more}"]


def _name_faults(row: Mapping[str, Any]) -> list[str]:
    """Check the id, and the names of client, domain and group."""
    faults = []
    if not _is_name(row.get("id")):
        faults.append(f"id: expected a text or a whole number, got {row.get('id')!r}")
    given = {key for key in ("client", "domain", "group") if row.get(key) is not None}
    for key in sorted(given):
        if not _is_name(row[key]):
            faults.append(f"{key}: expected a text or a whole number, got {row[key]!r}")
    if given >= {"client", "domain"}:
        faults.append("client and domain: expected one of the two, got both")
    if "client" in given and row.get("split") == "public":
        faults.append(f"client: a public sample belongs to no client, got {row['client']!r}")
    return faults


def _is_unlabelled(row: Mapping[str, Any]) -> bool:
    """Return whether a line has no target and needs none: it is public, or for `predict` only."""
    has_target = row.get("target") is not None or row.get("targets") is not None
    return not has_target and row.get("split") in (None, "test", "public")


def _is_name(value: object) -> bool:
    return bool(value.strip()) if isinstance(value, str) else type(value) is int


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _instruction_faults(row: Mapping[str, Any]) -> list[str]:
    instruction = row.get("instruction")
    if instruction is None or _is_text(instruction):
        return []
    return [f"instruction: expected a text, got {instruction!r}"]


def _target_faults(row: Mapping[str, Any]) -> list[str]:
    if _is_unlabelled(row):
        return []
    one, several = row.get("target"), row.get("targets")
    if (one is None) == (several is None):
        return [
            "expected either target, a text, or targets, a list of texts; only a line of split "
            "public, or of test, to be answered by predict, may lack both"
        ]
    texts = [one] if several is None else several
    if not isinstance(texts, list) or not texts:
        return [f"targets: expected a list of texts, got {texts!r}"]
    if not all(map(_is_text, texts)):
        return [f"target: expected a text that is not blank, got {texts!r}"]
    return []


def _modality_faults(inputs: object, modalities: Collection[str]) -> list[str]:
    if not isinstance(inputs, Mapping):
        return [f"modalities: expected names and their values, got {inputs!r}"]
    faults = []
    unknown = [name for name in inputs if name not in modalities]
    if unknown:
        like = look_alike(unknown[0], modalities)
        faults.append(f"modalities: {unknown} are not among {list(modalities)}{like}")
    if all(value is None for value in inputs.values()):
        faults.append(f"modalities: expected at least one of {list(modalities)}, got none")
    return faults


def _line(row: Mapping[str, Any], where: str, root: Path) -> Line:
    owner, domain = _owner_and_domain(row)
    name, group, target = str(row["id"]), row.get("group"), row.get("target")
    targets = [target] if target is not None else row.get("targets") or []
    split = row.get("split")
    return Line(
        where=where,
        root=root,
        id=name,
        split=split or ("train" if targets else "test"),
        owner=owner,
        domain=domain,
        group=name if group is None else str(group),
        modalities={m: value for m, value in row["modalities"].items() if value is not None},
        instruction=row.get("instruction"),
        targets=tuple(text.strip() for text in targets),
        has_split=split is not None or not targets,
    )


def _owner_and_domain(row: Mapping[str, Any]) -> tuple[Literal["client", "domain"] | None, str]:
    if row.get("client") is not None:
        return "client", str(row["client"])
    if row.get("domain") is not None:
        return "domain", str(row["domain"])
    return None, UNNAMED


def raise_faults(faults: Sequence[str], *, limit: int = 20) -> None:
    """Raise one message with the first ``limit`` faults and the number of the others.

    Raises:
        ConfigurationError: If there are any faults.
    """
    shown = FaultList(faults[:limit])
    if len(faults) > limit:
        shown.append(f"... and {len(faults) - limit:,} more")
    shown.raise_any(title=f"the manifest has {len(faults):,} faults:")
