"""Tables of numbers in a manifest: a row an instant, a column a channel."""

from __future__ import annotations

import csv
import io
import math
import re
from array import array

import numpy as np

from mlecs_lightning.data.decoding.shapes import Declared, DecodeError, Raw
from mlecs_lightning.storage.text_files import utf8

__all__ = ["read_csv"]

# 0.25 GB while they are read: twelve days of one sensor at 32 Hz.
_MAX_NUMBERS = 2**25

# A name in a header begins with none of these; what does was meant to be a number.
_LIKE_A_NUMBER = re.compile(r"\s*[-+]?\.?\d")
_DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+,\d+(?:[eE][-+]?\d+)?\s*")


def read_csv(data: bytes, declared: Declared) -> Raw:
    """Return (columns, rows) of numbers, or all of a single row or column for a vector.

    Columns are parted by tabs, semicolons or commas: by the first of these in the first line. A
    first row is a header if no cell of it is a number, or begins as one.

    Raises:
        DecodeError: If a cell is no number, rows differ in length, or a series has other columns
            than it declares channels; with line and cell.
    """
    text = utf8(data)
    first = text.lstrip("\r\n").partition("\n")[0]
    mark = next((mark for mark in "\t;," if mark in first), ",")
    reader = csv.reader(io.StringIO(text), delimiter=mark, strict=True)
    numbers, columns, is_first = array("d"), 0, True
    for fields in filter(None, reader):
        where = f"line {reader.line_num}"
        if is_first and not any(map(_is_like_a_number, fields)):
            is_first = False
            continue
        columns = columns or _checked_columns(len(fields), declared, where)
        if len(fields) != columns:
            raise DecodeError(
                f"{where}: expected {columns} fields, got {len(fields)}; every row has as many"
            )
        for column, field in enumerate(fields, start=1):
            numbers.append(_number(field, f"{where}, column {column}: {field[:40]!r}", is_first))
        is_first = False
        if len(numbers) > _MAX_NUMBERS:
            raise DecodeError(f"{where}: more than {_MAX_NUMBERS:,} numbers; cut the file")
    if not numbers:
        raise DecodeError("is empty")
    values = np.frombuffer(numbers).reshape(-1, columns)
    if declared.kind == "vector" and 1 in values.shape:
        return Raw(values.ravel(), source=values.shape)
    return Raw(values.T)


def _checked_columns(count: int, declared: Declared, where: str) -> int:
    """Return the number of columns.

    Raises:
        DecodeError: If it is not that of the channels.
    """
    if declared.kind == "series" and count != declared.shape[0]:
        comma = (
            "; if the comma is a decimal one, write points: 1.5"
            if count == 2 * declared.shape[0]
            else ""
        )
        raise DecodeError(
            f"{where}: has {count} columns, and the declared shape {declared.shape} "
            f"{declared.shape[0]} channels{comma}"
        )
    return count


def _is_like_a_number(field: str) -> bool:
    return bool(_LIKE_A_NUMBER.match(field)) or _is_number(field)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field  # 1_000 is a thousand for Python alone


def _number(field: str, what: str, is_first: bool) -> float:
    """Return the number of a cell.

    Raises:
        DecodeError: If it holds none, or none that is finite.
    """
    if _DECIMAL_COMMA.fullmatch(field):
        point = field.strip().replace(",", ".")
        raise DecodeError(f"{what} has a decimal comma; write points: {point}")
    if not _is_number(field):
        header = ", and the row no header: names there begin with a letter" if is_first else ""
        raise DecodeError(f"{what} is no number{header}; correct it")
    value = float(field)
    if not math.isfinite(value):
        raise DecodeError(f"{what} is not a finite number")
    return value
