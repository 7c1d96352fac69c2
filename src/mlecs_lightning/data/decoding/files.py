"""Decodes the bytes of a file into a float array of the declared shape.

Files may come from anywhere and are not trusted: sizes in headers are checked before memory is
allocated, pickles are refused, and any error of a decoder counts as a fault of the file.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlecs_lightning.data.decoding.csv_tables import read_csv
from mlecs_lightning.data.decoding.images import check_pixels, read_image
from mlecs_lightning.data.decoding.shapes import (
    Declared,
    Decoded,
    DecodeError,
    Raw,
    fitted,
    segments,
)
from mlecs_lightning.data.decoding.sound import read_m4a, read_sound, read_wav
from mlecs_lightning.extras import Need, require
from mlecs_lightning.functional import text_to_bytes
from mlecs_lightning.storage.text_files import EncodingError, utf8
from mlecs_lightning.types import ModalityKind

if TYPE_CHECKING:
    from av import VideoFrame

__all__ = ["VERSION", "decode", "decode_array", "decode_inline", "decode_text"]

VERSION = 3
"""Part of every cache key: increase it whenever the same file would give different values."""


def decode(data: bytes, suffix: str, declared: Declared) -> Decoded:
    """Decode the content of a file.

    Args:
        data: The content.
        suffix: File name extension in lower case, with the dot.
        declared: The form of the modality.

    Raises:
        DecodeError: If the content cannot be read or brought to this form.
        ImportError: If the package that reads such files is missing; the message names the extra.
    """
    readers = _READERS[declared.kind]
    if suffix not in readers:
        raise DecodeError(
            f"a modality of kind {declared.kind!r} is read from {sorted(readers)}, "
            f"not from {suffix or 'a file without an extension'!r}{_REMEDIES.get(suffix, '')}"
        )
    try:
        return fitted(readers[suffix](data, declared), declared)
    except (ImportError, DecodeError):
        raise
    except EncodingError as error:
        raise DecodeError(str(error)) from error
    except Exception as error:
        # Any error is the file's fault: Pillow alone raises a dozen kinds.
        raise DecodeError(
            f"is not a valid {suffix} file: {type(error).__name__}: {error}"
        ) from error


def decode_inline(value: object, declared: Declared) -> Decoded:
    """Decode numbers or a text that are written in the manifest itself.

    Args:
        value: A number or nested lists of numbers, in the order of the declared shape; for text,
            ``{"text": "..."}``.
        declared: The form of the modality.

    Raises:
        DecodeError: If the value is anything else.
    """
    if declared.kind == "text":
        if not (isinstance(value, dict) and isinstance(value.get("text"), str) and len(value) == 1):
            raise DecodeError(
                'inline text must be {"text": "..."}, and a path end in .txt; got '
                f"{str(value)[:60]}"
            )
        return decode_text(value["text"], declared)
    try:
        values = np.asarray(value)
    except ValueError as error:
        raise DecodeError(f"inline lists must have equal lengths: {error}") from error
    if values.dtype.kind not in "iuf":
        raise DecodeError(
            "an inline value must be a number, a list of numbers, or the path of a file, "
            f"got {str(value)[:60]}"
        )
    return fitted(Raw(np.atleast_1d(values)), declared)


def decode_text(text: str, declared: Declared) -> Decoded:
    """Decode a text as if it came from a txt file.

    Raises:
        DecodeError: If the text is blank or has a null character.
    """
    try:
        return fitted(_text(text.encode(), declared), declared)
    except UnicodeEncodeError as error:  # a lone surrogate
        raise DecodeError(str(error)) from error


def decode_array(values: npt.NDArray[Any], declared: Declared) -> Decoded:
    """Bring an array to the declared shape, as if it came from an npy file.

    Args:
        values: Numbers; unsigned 8- or 16-bit integers of an image are scaled to [0, 1].
        declared: The form of the modality.

    Raises:
        DecodeError: If the array cannot be brought to this form.
    """
    if values.dtype.kind not in "iuf":
        raise DecodeError(f"holds {values.dtype}, expected numbers")
    return fitted(Raw(_in_unit_range(values, declared)), declared)


# Reading ------------------------------------------------------------------------------------------


def _text(data: bytes, declared: Declared) -> Raw:
    """Return the bytes of the text without surrounding blanks."""
    text = utf8(data).strip()
    if not text:
        raise DecodeError("is empty")
    if "\0" in text:
        raise DecodeError("contains a null character")
    return Raw(text_to_bytes(text, declared.shape[0]).numpy(), source=(len(text.encode()),))


def _npy(data: bytes, declared: Declared) -> Raw:
    """Return an array in numpy's format; see `decode_array` for integers of an image."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DecodeError(f"has version {version} of numpy's format, expected (1, 0) or (2, 0)")
    headers = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shape, is_fortran, dtype = headers[version[0]](file)
    if dtype.kind not in "iuf":
        raise DecodeError(f"holds {dtype}, expected numbers; pickles are not read")
    promised, found = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
    if min(shape, default=1) < 0 or promised > found:
        raise DecodeError(
            f"is cut off: shape {shape} needs {promised:,} bytes, but {found:,} follow the header"
        )
    values = np.frombuffer(data, dtype, math.prod(shape), file.tell())
    values = values.reshape(shape, order="F" if is_fortran else "C")
    return Raw(_in_unit_range(values, declared))


def _in_unit_range(values: npt.NDArray[Any], declared: Declared) -> npt.NDArray[Any]:
    """Scale unsigned 8- or 16-bit integers of an image to [0, 1], and keep all other values."""
    if declared.kind == "image" and values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return values / np.float32(np.iinfo(values.dtype).max)
    return values


def _video(data: bytes, declared: Declared) -> Raw:
    """Return images of a video (3 * segments, height, width) in [0, 1], the oldest first."""
    parts, odd = divmod(declared.shape[0], 3)
    if odd:
        raise DecodeError(
            f"a video has 3 channels per frame: the {declared.shape[0]} channels of the declared "
            f"shape {declared.shape} must be a multiple of 3"
        )
    require(Need("mp4", "video"))
    import av

    # The format is fixed: PyAV could take the content for a playlist that names other files.
    with av.open(io.BytesIO(data), "r", format="mp4") as container:
        if not container.streams.video:
            raise DecodeError("has no video stream")
        stream = container.streams.video[0]
        check_pixels(stream.codec_context.width, stream.codec_context.height * parts)
        count = sum(1 for packet in container.demux(stream) if packet.size)
        if count < stream.frames:
            raise DecodeError(f"is cut off: it should have {stream.frames} frames, but has {count}")
    images, seen = _frames(data, declared, segments(count, parts))
    if seen != count:  # a packet need not hold a frame
        images, _ = _frames(data, declared, segments(seen, parts))
    if not seen:
        raise DecodeError("has no frames")
    values = np.concatenate([images[part] for part in range(parts)])
    return Raw(values, source=(seen, *values.shape[1:]))


def _frames(
    data: bytes, declared: Declared, parts: list[tuple[int, int]]
) -> tuple[dict[int, npt.NDArray[np.float64]], int]:
    """Return the image of each segment of frames, and the number of frames in the video."""
    import av

    images: dict[int, npt.NDArray[np.float64]] = {}
    seen = 0
    with av.open(io.BytesIO(data), "r", format="mp4") as container:
        for seen, frame in enumerate(container.decode(video=0), start=1):
            for part, (begin, end) in enumerate(parts):
                if declared.frames == "last" and seen == end:
                    images[part] = _rgb(frame)
                elif declared.frames == "mean" and begin < seen <= end:
                    images[part] = images.get(part, 0.0) + _rgb(frame) / (end - begin)
    return images, seen


def _rgb(frame: VideoFrame) -> npt.NDArray[np.float64]:
    return np.asarray(frame.to_ndarray(format="rgb24").transpose(2, 0, 1) / 255.0, np.float64)


_READERS: dict[ModalityKind, dict[str, Callable[[bytes, Declared], Raw]]] = {
    "image": {
        **dict.fromkeys((".png", ".jpg", ".jpeg"), read_image),
        **{".npy": _npy, ".mp4": _video},
    },
    "series": {
        **{".npy": _npy, ".csv": read_csv, ".wav": read_wav, ".m4a": read_m4a},
        **dict.fromkeys((".flac", ".mp3", ".ogg"), read_sound),
    },
    "vector": {".npy": _npy, ".csv": read_csv},
    "text": {".txt": _text},
}

_REMEDIES = {
    **dict.fromkeys(
        (".aac", ".aif", ".aiff", ".amr", ".caf", ".opus", ".wma"),
        ": convert it: ffmpeg -i OLD NEW.wav",
    ),
    **dict.fromkeys(
        (".bmp", ".gif", ".heic", ".heif", ".tif", ".tiff", ".webp"),
        ": save it as png, for instance: magick OLD NEW.png",
    ),
    **dict.fromkeys((".avi", ".mkv", ".mov", ".webm"), ": convert it: ffmpeg -i OLD NEW.mp4"),
    **dict.fromkeys((".ods", ".xls", ".xlsx"), ": save it as csv in your spreadsheet program"),
    **dict.fromkeys((".tsv", ".tab"), ": rename it to .csv, whose delimiter may be the tab"),
    **dict.fromkeys((".doc", ".docx", ".md", ".odt", ".pdf"), ": save its text as txt in UTF-8"),
}
"""What to do about files that are not read, by their extension."""
