"""How a csv file is written: its columns, delimiter, decimal mark and header."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from mlecs_lightning.types import ModalityKind

__all__ = ["CsvForm"]


@dataclass(frozen=True)
class CsvForm:
    r"""How a csv file is written.

    Attributes:
        columns: The columns to read, in the order of the channels: names in the header, or numbers
            from 1. All by default. The others may hold anything.
        delimiter: What separates the fields, one character; a space stands for any number of
            spaces and tabs. By default the tab, semicolon or comma: the first of these, in this
            order, that the first line contains; but no comma that is the decimal mark.
        decimal: The decimal mark, ``.`` or ``,``.
        header: Whether the first row is a header. By default it is one if none of its fields is a
            number or begins like one.
    """

    columns: list[str | int] | None = None
    delimiter: str | None = None
    decimal: Literal[".", ","] = "."
    header: bool | None = None

    def faults(self, kind: ModalityKind, *, channels: int) -> list[str]:
        """Return what is wrong with the options.

        Args:
            kind: Kind of the modality.
            channels: First number of its shape.
        """
        if kind not in ("series", "vector"):
            return [f"csv is for kinds 'series' and 'vector' only, got kind {kind!r}"]
        return [*self._column_faults(kind, channels), *self._mark_faults()]

    def _column_faults(self, kind: ModalityKind, channels: int) -> list[str]:
        if self.columns is None:
            return []
        faults = []
        repeated = [name for name, count in Counter(self.columns).items() if count > 1]
        if repeated:
            faults.append(f"csv.columns names {repeated} more than once")
        if any(isinstance(name, int) and name < 1 for name in self.columns):
            faults.append(f"csv.columns are names, or numbers from 1, got {self.columns}")
        if self.header is False and any(isinstance(name, str) for name in self.columns):
            faults.append("csv.columns has names, so csv.header cannot be false: give numbers")
        if kind == "series" and len(self.columns) != channels:
            faults.append(
                f"csv.columns has {len(self.columns)} columns, but the declared shape has "
                f"{channels} channels"
            )
        if not self.columns:
            faults.append("csv.columns is empty: leave it out to read all columns")
        return faults

    def _mark_faults(self) -> list[str]:
        if self.delimiter is None:
            return []
        if len(self.delimiter) != 1 or self.delimiter in "\r\n\"'.+-" or self.delimiter.isalnum():
            return [
                "csv.delimiter must be one character that no number has, such as ';', or \"\\t\" "
                f"in double quotes for the tab; got {self.delimiter!r}"
            ]
        if self.delimiter == self.decimal:
            return [f"csv.delimiter and csv.decimal are both {self.decimal!r}"]
        return []
