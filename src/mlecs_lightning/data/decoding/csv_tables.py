"""Reads csv tables of numbers: a row per instant, a column per channel."""

from __future__ import annotations

import csv
import io
import math
import re
from array import array
from collections.abc import Iterator

import numpy as np

from mlecs_lightning.data.decoding.csv_form import CsvForm
from mlecs_lightning.data.decoding.shapes import Declared, DecodeError, Raw
from mlecs_lightning.names import look_alike
from mlecs_lightning.storage.text_files import utf8

__all__ = ["read_csv"]

# 0.25 GB while they are read: twelve days of one sensor at 32 Hz.
_MAX_NUMBERS = 2**25

# A field that begins like this was meant to be a number, and is not a name in a header.
_LIKE_A_NUMBER = re.compile(r"\s*[-+]?\.?\d")
_DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+,\d+(?:[eE][-+]?\d+)?\s*")


def read_csv(data: bytes, declared: Declared) -> Raw:
    """Read a table of numbers.

    Args:
        data: Content of the file.
        declared: The form of the modality; its ``csv`` says how the file is written.

    Returns:
        Values (columns, rows); of a vector in a single row or column, values (features).

    Raises:
        DecodeError: If a field is not a number, rows differ in length, or a series has a column too
            many or too few for its channels. The message names line and column.
    """
    form, text = declared.csv or CsvForm(), utf8(data)
    numbers, width, chosen = array("d"), 0, list[int]()
    header: list[str] | None = None
    for row, (line, fields) in enumerate(_rows(text, form)):
        where = f"line {line}"
        if row == 0 and (_is_header(fields) if form.header is None else form.header):
            header = [field.strip() for field in fields]
            continue
        if not width:
            width = len(fields)
            chosen = _chosen(fields, header, form, declared, where)
        if len(fields) != width:
            raise DecodeError(
                f"{where}: expected {width} fields as in the first row, got {len(fields)}"
            )
        is_first = row == 0 and form.header is None
        for column in chosen:
            what = f"{where}, column {column + 1}: {fields[column][:40]!r}"
            numbers.append(_number(fields[column], what, form, is_first=is_first))
        if len(numbers) > _MAX_NUMBERS:
            raise DecodeError(f"{where}: more than {_MAX_NUMBERS:,} numbers; split the file")
    if not numbers:
        raise DecodeError("is empty")
    values = np.frombuffer(numbers).reshape(-1, len(chosen))
    if declared.kind == "vector" and 1 in values.shape:
        return Raw(values.ravel(), source=values.shape)
    return Raw(values.T)


def _rows(text: str, form: CsvForm) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each row that is not blank, and the number of its last line."""
    if form.delimiter == " ":
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield number, line.split()
        return
    delimiter = form.delimiter or _delimiter(text, form)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    for fields in reader:
        if fields:
            yield reader.line_num, fields


def _delimiter(text: str, form: CsvForm) -> str:
    marks = "\t;," if form.decimal == "." else "\t;"
    first_line = text.lstrip("\r\n").partition("\n")[0]
    return next((mark for mark in marks if mark in first_line), marks[-1])


def _chosen(
    fields: list[str], header: list[str] | None, form: CsvForm, declared: Declared, where: str
) -> list[int]:
    """Return the indices of the columns to read.

    Args:
        fields: The first row of numbers.
        header: The names of the columns, if the file has them.
        form: How the file is written.
        declared: The form of the modality.
        where: Line of the first row.

    Raises:
        DecodeError: If a column is missing, or a series has not as many as channels.
    """
    if form.columns is None:
        _check_columns(len(fields), declared, where)
        return list(range(len(fields)))
    chosen = []
    for column in form.columns:
        if isinstance(column, str):
            chosen.append(_named(column, header, len(fields), where))
        elif column > len(fields):
            raise DecodeError(
                f"{where}: has {len(fields)} columns, and csv.columns asks for column {column}"
            )
        else:
            chosen.append(column - 1)
    return chosen


def _named(column: str, header: list[str] | None, width: int, where: str) -> int:
    """Return the index of a column by its name.

    Raises:
        DecodeError: If there is no header, or not one such column in it.
    """
    if header is None:
        raise DecodeError(
            f"has no header in its first row, and csv.columns asks for {column!r}: give the "
            "numbers of the columns, from 1"
        )
    if len(header) != width:
        raise DecodeError(
            f"{where}: has {width} fields, but the header {len(header)} names, so that a name "
            "tells no column: give the numbers of the columns, from 1"
        )
    count = header.count(column)
    if count == 1:
        return header.index(column)
    if count:
        raise DecodeError(
            f"has {count} columns called {column!r}: give the number of one, from 1, in csv.columns"
        )
    raise DecodeError(
        f"has no column called {column!r}, only {header}{look_alike(column, header)}: correct "
        "csv.columns"
    )


def _check_columns(count: int, declared: Declared, where: str) -> None:
    """Check that a series has a column for each channel.

    Raises:
        DecodeError: If it does not.
    """
    if declared.kind != "series" or count == declared.shape[0]:
        return
    message = (
        f"{where}: has {count} columns, but the declared shape {declared.shape} has "
        f"{declared.shape[0]} channels"
    )
    if count == 2 * declared.shape[0]:
        message += "; if the comma is a decimal comma, set csv.decimal to ','"
    elif count > declared.shape[0]:
        message += "; choose columns with csv.columns"
    else:
        message += "; if the fields are separated by another mark, set csv.delimiter"
    raise DecodeError(message)


def _is_header(fields: list[str]) -> bool:
    return not any(_LIKE_A_NUMBER.match(field) or _is_number(field) for field in fields)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field  # only Python reads 1_000 as a thousand


def _number(field: str, what: str, form: CsvForm, *, is_first: bool) -> float:
    """Parse a field.

    Raises:
        DecodeError: If it is not a finite number.
    """
    point = field.strip().replace(",", ".")
    if form.decimal == ",":
        if "." in field:
            raise DecodeError(
                f"{what} has a point, but csv.decimal is ',': remove points between thousands, or "
                "leave csv.decimal out"
            )
        field = point
    elif _DECIMAL_COMMA.fullmatch(field):
        raise DecodeError(
            f"{what} has a decimal comma; write points: {point}, or set csv.decimal to ','"
        )
    if not _is_number(field):
        header = ", and its row not a header, whose names begin with a letter" if is_first else ""
        raise DecodeError(f"{what} is not a number{header}; correct it")
    value = float(field)
    if not math.isfinite(value):
        raise DecodeError(f"{what} is not a finite number")
    return value
