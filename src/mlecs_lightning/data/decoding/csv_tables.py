"""Reads csv tables of numbers: a row per instant, a column per channel."""

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

# A field that begins like this was meant to be a number, and is not a name in a header.
_LIKE_A_NUMBER = re.compile(r"\s*[-+]?\.?\d")
_DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+,\d+(?:[eE][-+]?\d+)?\s*")


def read_csv(data: bytes, declared: Declared) -> Raw:
    """Read a table of numbers.

    The delimiter is the tab, semicolon or comma: the first of these, in this order, that the first
    line contains. The first row is a header if none of its fields is a number or begins like one.

    Args:
        data: Content of the file.
        declared: The form of the modality.

    Returns:
        Values (columns, rows); of a vector in a single row or column, values (features).

    Raises:
        DecodeError: If a field is not a number, rows differ in length, or a series has a column too
            many or too few for its channels. The message names line and column.
    """
    text = utf8(data)
    reader = csv.reader(io.StringIO(text), delimiter=_delimiter(text), strict=True)
    numbers, columns, is_first = array("d"), 0, True
    for fields in filter(None, reader):
        where = f"line {reader.line_num}"
        if is_first and _is_header(fields):
            is_first = False
            continue
        if not columns:
            _check_columns(len(fields), declared, where)
            columns = len(fields)
        if len(fields) != columns:
            raise DecodeError(
                f"{where}: expected {columns} fields as in the first row, got {len(fields)}"
            )
        for column, field in enumerate(fields, start=1):
            numbers.append(_number(field, f"{where}, column {column}: {field[:40]!r}", is_first))
        is_first = False
        if len(numbers) > _MAX_NUMBERS:
            raise DecodeError(f"{where}: more than {_MAX_NUMBERS:,} numbers; split the file")
    if not numbers:
        raise DecodeError("is empty")
    values = np.frombuffer(numbers).reshape(-1, columns)
    if declared.kind == "vector" and 1 in values.shape:
        return Raw(values.ravel(), source=values.shape)
    return Raw(values.T)


def _delimiter(text: str) -> str:
    first_line = text.lstrip("\r\n").partition("\n")[0]
    return next((mark for mark in "\t;," if mark in first_line), ",")


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
        message += "; if the comma is a decimal comma, write points: 1.5"
    raise DecodeError(message)


def _is_header(fields: list[str]) -> bool:
    return not any(_LIKE_A_NUMBER.match(field) or _is_number(field) for field in fields)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field  # only Python reads 1_000 as a thousand


def _number(field: str, what: str, is_first: bool) -> float:
    """Parse a field.

    Raises:
        DecodeError: If it is not a finite number.
    """
    if _DECIMAL_COMMA.fullmatch(field):
        point = field.strip().replace(",", ".")
        raise DecodeError(f"{what} has a decimal comma; write points: {point}")
    if not _is_number(field):
        header = ", and its row not a header, whose names begin with a letter" if is_first else ""
        raise DecodeError(f"{what} is not a number{header}; correct it")
    value = float(field)
    if not math.isfinite(value):
        raise DecodeError(f"{what} is not a finite number")
    return value
