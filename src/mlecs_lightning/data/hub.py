"""Data sets of Hugging Face `datasets`: from the hub, or from a local folder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn

from mlecs_lightning.data.decoding.shapes import DecodeError
from mlecs_lightning.data.manifest.line import Line
from mlecs_lightning.data.manifest.lines import RowTable, lines_of
from mlecs_lightning.data.manifest.source import Manifest
from mlecs_lightning.data.manifest.split import DrawnSplit
from mlecs_lightning.data.manifest.store import Embedded, OutsideRootError
from mlecs_lightning.errors import ConfigurationError, FaultList
from mlecs_lightning.extras import Need, require
from mlecs_lightning.storage.paths import expanded_name

__all__ = ["HubDataset"]

Place = Literal["public", "train", "val", "test", "draw"]

_KEYS = ("id", "client", "domain", "group", "instruction", "target", "targets")
_USUAL: dict[str, Place] = {"train": "draw", "validation": "val", "test": "test"}
# The first bytes of the files that are decoded, for those whose name was not kept.
_MAGIC = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"fLaC": ".flac"}
_RIFF = {b"WAVE": ".wav", b"WEBP": ".webp", b"AVI ": ".avi"}


class HubDataset(Manifest):
    """A data set of Hugging Face `datasets`, read as a `Manifest` with a line for each row.

    The rows of a local folder may be Parquet, CSV or JSON, or files below ``train/``, ``test/``:
    images (imagefolder) or sounds (audiofolder), with a metadata.csv or a folder for each class.
    Images and sounds are decoded by this package, so neither torchcodec nor soundfile is needed
    for png, jpg and wav. Needs the extra ``datasets``.
    """

    def __init__(
        self,
        path: str,
        modalities: dict[str, dict[str, Any]],
        *,
        columns: dict[str, str],
        name: str | None = None,
        revision: str | None = None,
        splits: dict[str, Place] | None = None,
        split: DrawnSplit | None = None,
        labels: dict[str, list[str]] | Literal["class_names"] | None = None,
        **kwargs: Any,
    ) -> None:
        """Set where the rows are, and which column is what.

        Args:
            path: A local folder, or a hub id.
            modalities: As in `Manifest`; also ``column``, by default the name of the modality.
                ``kind`` may be left out: images, sounds (series), texts and lists of numbers
                (vector) are told by the column's type. So may ``shape`` where it is fixed there.
            columns: The column of ``target`` (or ``targets``), and where they exist of
                ``instruction``, ``client``, ``domain``, ``group`` and ``id``; see `Manifest`. A
                class label becomes its name.
            name: Configuration of the data set.
            revision: Branch, tag or commit on the hub.
            splits: How each split of the data set is used: as ``public``, ``train`` (for the
                clients), ``val`` or ``test``, or ``draw``, which divides it by ``split``. Splits
                that are not named are not read. By default train is divided, and validation and
                test are used as such.
            split: As in `Manifest`. By default a quarter of what is divided is public and, if the
                data set has no test split, a fifth is for testing.
            labels: As in `Manifest`; or ``class_names``: each class is named by its name, where
                ``target`` is a column of class labels.
            **kwargs: See `Manifest`.

        Raises:
            ValueError: If a value is out of range, or a column does not exist.
        """
        self.path = expanded_name(path, key="data.init_args.path")
        self.name, self.revision, self.splits = name, revision, splits
        self.columns = columns
        self._tables: dict[str, Any] | None = None
        faults = FaultList()
        if unknown := sorted(columns.keys() - {*_KEYS}):
            faults.append(f"data.init_args.columns: unknown keys {unknown}, known: {list(_KEYS)}")
        if not columns.keys() & {"target", "targets"}:
            faults.append("data.init_args.columns: name the column of the target")
        faults.raise_any()
        self.column_of = {m: str(v.get("column", m)) for m, v in modalities.items()}
        declared = {m: {k: v for k, v in d.items() if k != "column"} for m, d in modalities.items()}
        if any(not {"kind", "shape"} <= form.keys() for form in declared.values()):
            features = next(iter(self._loaded(kwargs.get("cache_dir")).values())).features
            for modality, form in declared.items():
                column = self.column_of[modality]
                told = faults.attempt(_told, modality, column, features)
                declared[modality] = {**(told or {}), **form}
            faults.raise_any()
        if labels == "class_names":
            features = next(iter(self._loaded(kwargs.get("cache_dir")).values())).features
            labels = _class_names(columns.get("target", ""), features)
        super().__init__(self.path, declared, split=split, labels=labels, **kwargs)

    def _loaded(self, cache_dir: str | Path | None) -> dict[str, Any]:
        """Return the table of each split that is used, with files as they are stored.

        Raises:
            ImportError: If `datasets` is not installed.
            ConfigurationError: If the data set cannot be loaded, or lacks a split.
        """
        if self._tables is None:
            self._tables = self._load(cache_dir)
        return self._tables

    def _load(self, cache_dir: str | Path | None) -> dict[str, Any]:
        hf = _library()
        kept = None if cache_dir is None else str(Path(cache_dir).expanduser() / "datasets")
        try:
            with _without_codec(hf):
                found = hf.load_dataset(
                    self.path, self.name, revision=self.revision, cache_dir=kept, streaming=False
                )
        except Exception as error:  # the library raises dozens of kinds
            reason = error.__cause__ or error
            raise ConfigurationError(
                f"data.init_args.path: cannot load {self.path!r}: {type(reason).__name__}: {reason}"
            ) from error
        chosen = self.splits or {s: p for s, p in _USUAL.items() if s in found}
        missing = [split for split in chosen if split not in found]
        if missing or not chosen:
            raise ConfigurationError(
                f"data.init_args.splits: {self.path!r} has the splits {list(found)}, "
                f"not {missing or list(_USUAL)}"
            )
        self.places = chosen
        return {split: _undecoded(hf, found[split]) for split in chosen}

    def _lines(self) -> tuple[list[Line], list[str]]:
        """Return a line for each row; see `Manifest`."""
        tables = self._loaded(self._given_cache)
        if self.split is None:
            has_test = "test" in self.places.values()
            self.split = {"public": 0.25, **({} if has_test else {"test": 0.2})}
        faults = FaultList()
        for split, table in tables.items():
            wanted = {*self.column_of.values(), *self.columns.values()}
            if unknown := sorted(wanted - {*table.column_names}):
                faults.append(
                    f"data.init_args: split {split!r} has no columns {unknown}, only "
                    f"{table.column_names}"
                )
        faults.raise_any()
        here = Path(self.path)
        own = here if here.is_dir() else _cache_of(_library())
        root, names = self.root or own, {split: f"{self.path}, split {split}" for split in tables}
        rows = [
            RowTable(names[split], root, self._rows(split, table, [root, own]))
            for split, table in tables.items()
        ]
        draws = tuple(f"{n}:" for split, n in names.items() if self.places[split] == "draw")
        lines, wrong = lines_of(rows, self.declared, draws_split=True)
        lost = [line for line in lines if not line.targets and line.where.startswith(draws)]
        if lost:
            rank_zero_warn(
                f"data.init_args.columns: {len(lost):,} rows of {self.path!r} have no target, such "
                f"as {lost[0].where}: they are neither trained on nor scored. In CSV the words "
                "None, NA, N/A, nan and null are read as empty cells: rename such a class, or save "
                "the table as Parquet or JSON lines"
            )
        return lines, wrong

    def _rows(
        self,
        split: str,
        table: Any,  # noqa: ANN401
        own: list[Path],
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the rows in the form of a manifest's lines."""
        place = self.places[split]
        roots = [*own, *self.allowed_roots]
        for number, row in enumerate(table):
            line: dict[str, Any] = {"id": f"{split}-{number}"}
            if place != "draw":
                line["split"] = place
            for key, column in self.columns.items():
                line[key] = _plain(row[column], table.features[column])
            line["modalities"] = {
                m: _input(row[column], self.declared[m].kind, roots, (table, number, column))
                for m, column in self.column_of.items()
            }
            yield number, {k: v for k, v in line.items() if v is not None}


# The library --------------------------------------------------------------------------------------


def _library() -> Any:  # noqa: ANN401 - a module without types
    require(Need("data.class_path HubDataset", "datasets"))
    hf = importlib.import_module("datasets")
    if not sys.stderr.isatty():
        hf.disable_progress_bars()
    return hf


@contextmanager
def _without_codec(hf: Any) -> Iterator[None]:  # noqa: ANN401
    """List the files of an audiofolder without torchcodec.

    The library asks for it before it looks at a file, even if it only keeps the file's path.
    """
    encode = hf.Audio.encode_example

    def path_or_encoded(self: Any, value: Any) -> Any:  # noqa: ANN401
        return {"bytes": None, "path": value} if isinstance(value, str) else encode(self, value)

    hf.Audio.encode_example = path_or_encoded
    try:
        yield
    finally:
        hf.Audio.encode_example = encode


def _undecoded(hf: Any, table: Any) -> Any:  # noqa: ANN401
    """Return a table whose images and sounds are files."""
    for column, feature in table.features.items():
        if isinstance(feature, hf.Image | hf.Audio):
            table = table.cast_column(column, type(feature)(decode=False))
    return table


def _cache_of(hf: Any) -> Path:  # noqa: ANN401
    return Path(hf.config.HF_CACHE_HOME)


# Columns ------------------------------------------------------------------------------------------


def _told(modality: str, column: str, features: Mapping[str, Any]) -> dict[str, Any]:
    """Return kind and shape of a modality, as far as the type of its column says.

    Raises:
        ConfigurationError: If the column does not exist, or its type says nothing.
    """
    key = f"data.init_args.modalities.{modality}"
    if column not in features:
        raise ConfigurationError(f"{key}: there is no column {column!r}, only {list(features)}")
    feature = features[column]
    match type(feature).__name__:
        case "Image":
            return {"kind": "image"}
        case "Audio":
            return {"kind": "series"}
        case "Array2D":
            return {"kind": "series", "shape": list(feature.shape)}
        case "Array3D":
            return {"kind": "image", "shape": list(feature.shape)}
        case "List" if feature.length > 0:
            return {"kind": "vector", "shape": [feature.length]}
        case "List":
            return {"kind": "vector"}
        case "Value" if feature.dtype in ("string", "large_string"):
            return {"kind": "text"}
        case "Value" if feature.dtype.startswith(("float", "int", "uint")):
            return {"kind": "vector", "shape": [1]}
    raise ConfigurationError(f"{key}: column {column!r} is of type {feature}: give kind and shape")


def _class_names(column: str, features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names of a column's classes, each named by itself.

    Raises:
        ConfigurationError: If it has no classes.
    """
    feature = features.get(column)
    if feature is None or type(feature).__name__ != "ClassLabel":
        raise ConfigurationError(
            f"data.init_args.labels: class_names needs a target column of class labels, but "
            f"{column!r} is of type {feature}: list the words that name each class"
        )
    return {name: [name] for name in feature.names}


def _plain(value: Any, feature: Any) -> Any:  # noqa: ANN401
    """Return a value as a manifest writes it: of a class label the name, ``None`` if unknown."""
    if type(feature).__name__ != "ClassLabel" or value is None:
        return value
    return feature.int2str(value) if value >= 0 else None


def _input(value: Any, kind: str, roots: list[Path], place: tuple[Any, int, str]) -> Any:  # noqa: ANN401
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        # Read again when it is decoded, so that not all files are in memory at once.
        return Embedded(partial(_file, *place, roots))
    if kind == "text" and isinstance(value, str):
        return {"text": value} if value.strip() else None
    return value


def _file(table: Any, row: int, column: str, roots: list[Path]) -> tuple[bytes, str]:  # noqa: ANN401
    """Return content and extension of the file in a cell.

    Raises:
        OutsideRootError: If it is no part of the data set.
        DecodeError: If it cannot be read.
    """
    cell = table[row][column]
    content, path = cell["bytes"], cell["path"]
    if content is None:
        file = Path(path or "").resolve()
        if not any(file.is_relative_to(root.resolve()) for root in roots):
            raise OutsideRootError(
                f"{path!r} lies outside of the data set; if it may be read, add its folder to "
                "data.init_args.allowed_roots"
            )
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DecodeError(f"cannot be read: {error}") from error
    if content[:4] == b"RIFF" and content[8:12] in _RIFF:
        return content, _RIFF[content[8:12]]
    told = (suffix for magic, suffix in _MAGIC.items() if content.startswith(magic))
    return content, next(told, PurePosixPath(path or "").suffix.lower())
