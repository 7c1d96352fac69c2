"""Reading text files as UTF-8, independently of the locale."""

from __future__ import annotations

import codecs
from pathlib import Path

__all__ = ["EncodingError", "read_text", "utf8"]

# The longer mark first: it begins with the shorter one.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class EncodingError(ValueError):
    """A text is not UTF-8; says where, which encoding it may be, and what to do."""


def utf8(data: bytes, *, line: int = 1) -> str:
    r"""Decode a text in UTF-8, with or without a byte-order mark.

    Args:
        data: The text.
        line: Number of its first line.

    Raises:
        EncodingError: If it is in another encoding.

    Example:
        >>> utf8(b"\xef\xbb\xbfK\xc3\xbcche")
        'Küche'
    """
    mark = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    if mark is None and b"\0" in data[:1000] and data[:1000].count(b"\0") * 3 > len(data[:1000]):
        mark = "UTF-16"  # no mark, but many zero bytes
    if mark is not None:
        raise EncodingError(
            f"is no text in UTF-8 but in {mark}: save it anew: iconv -f {mark} -t UTF-8 OLD > NEW"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # `error.object` and `error.start` do not include the byte-order mark.
        before = error.object[: error.start]
        raise EncodingError(
            f"is no text in UTF-8: line {line + before.count(10)}, "
            f"byte {len(before) - before.rfind(10)} is 0x{error.object[error.start]:02x}; if it is "
            "Windows-1252 or Latin-1, save it anew: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        ) from error


def read_text(path: Path) -> str:
    """Read a text file with `utf8`.

    Raises:
        EncodingError: If it is in another encoding.
        OSError: If it cannot be read.
    """
    return utf8(path.read_bytes())
