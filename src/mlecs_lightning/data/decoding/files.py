"""What a manifest's files hold: bytes in, one float array of the declared shape out.

The files may come from anywhere, so nothing in them is trusted: a header's size is checked before
memory is taken, pickles are refused, and a decoder that fails in whatever way has found a bad file.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlecs_lightning.data.decoding.csv_tables import read_csv
from mlecs_lightning.data.decoding.shapes import (
    Declared,
    Decoded,
    DecodeError,
    Raw,
    fitted,
    stretches,
)
from mlecs_lightning.data.decoding.sound import read_sound, read_wav
from mlecs_lightning.functional import text_to_bytes
from mlecs_lightning.storage.text_files import EncodingError, utf8
from mlecs_lightning.types import ModalityKind

if TYPE_CHECKING:
    from av import VideoFrame

__all__ = ["VERSION", "decode", "decode_array", "decode_inline", "decode_text"]

VERSION = 2
"""Part of every cache key: raise it whenever the same file would give other values."""

# Larger than any camera's image; 50 million RGB pixels are 150 MB.
_MAX_PIXELS = 50_000_000


def decode(data: bytes, suffix: str, declared: Declared) -> Decoded:
    """Decode the content of a file.

    Args:
        data: The content.
        suffix: The end of its name, in lower case, with the dot.
        declared: What it should be.

    Raises:
        DecodeError: If it is anything else.
        ImportError: If the package that reads such files is missing; it names the extra.
    """
    readers = _READERS[declared.kind]
    if suffix not in readers:
        raise DecodeError(
            f"a modality of kind {declared.kind!r} is read from {sorted(readers)}, "
            f"not from {suffix or 'a file without an ending'!r}"
        )
    try:
        return fitted(readers[suffix](data, declared), declared)
    except (ImportError, DecodeError):
        raise
    except EncodingError as error:
        raise DecodeError(str(error)) from error
    except Exception as error:
        # Whatever a decoder trips over, it is the file's fault: Pillow alone raises a dozen kinds.
        raise DecodeError(f"is no sound {suffix} file: {type(error).__name__}: {error}") from error


def decode_inline(value: object, declared: Declared) -> Decoded:
    """Check numbers or a text that stand in the manifest itself.

    Args:
        value: A number or nested lists of them, in the order of the declared shape; or, of a
            text, ``{"text": "..."}``.
        declared: What they should be.

    Raises:
        DecodeError: If they are anything else.
    """
    if declared.kind == "text":
        if not (isinstance(value, dict) and isinstance(value.get("text"), str) and len(value) == 1):
            raise DecodeError(
                'an inline text is {"text": "..."}, and a path ends in .txt; got '
                f"{str(value)[:60]}"
            )
        return decode_text(value["text"], declared)
    try:
        values = np.asarray(value)
    except ValueError as error:
        raise DecodeError(f"inline lists must be of equal lengths: {error}") from error
    if values.dtype.kind not in "iuf":
        raise DecodeError(
            f"inline values are numbers or lists of them, or the path of a file, "
            f"got {str(value)[:60]}"
        )
    return fitted(Raw(np.atleast_1d(values)), declared)


def decode_text(text: str, declared: Declared) -> Decoded:
    """Return the bytes of a text, as if it came from a txt file.

    Raises:
        DecodeError: If there is nothing else, or a null character in it.
    """
    try:
        return fitted(_text(text.encode(), declared), declared)
    except UnicodeEncodeError as error:  # half of a pair of surrogates
        raise DecodeError(str(error)) from error


def decode_array(values: npt.NDArray[Any], declared: Declared) -> Decoded:
    """Bring an array to the declared shape, as if it came from an npy file.

    Args:
        values: Numbers; whole ones of an image, of 8 or 16 bits, become 0..1.
        declared: What they should be.

    Raises:
        DecodeError: If they are anything else.
    """
    if values.dtype.kind not in "iuf":
        raise DecodeError(f"holds {values.dtype}, expected numbers")
    return fitted(Raw(_in_unit_range(values, declared)), declared)


# Reading ------------------------------------------------------------------------------------------


def _text(data: bytes, declared: Declared) -> Raw:
    """(bytes) of the text without the blanks around it."""
    text = utf8(data).strip()
    if not text:
        raise DecodeError("is empty")
    if "\0" in text:
        raise DecodeError("has a null character")
    return Raw(text_to_bytes(text, declared.shape[0]).numpy(), source=(len(text.encode()),))


def _image(data: bytes, declared: Declared) -> Raw:
    """(channels, height, width) in 0..1, upright."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # No other format, whatever the content says: Pillow also knows some that run programs.
        image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    _check_pixels(*image.size)
    image = ImageOps.exif_transpose(image)
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    if image.mode == "1":
        image = image.convert("L")
    deep = image.mode in ("I", "I;16", "I;16B")
    if not deep and image.mode not in ("L", "LA", "RGB", "RGBA"):
        raise DecodeError(f"has colours of mode {image.mode!r}, expected grey, RGB or RGBA")
    pixels = np.array(image, np.float32)
    pixels /= 65535 if deep else 255  # in place: a large image takes its memory once
    return Raw(np.atleast_3d(pixels).transpose(2, 0, 1))


def _check_pixels(width: int, height: int) -> None:
    if width * height > _MAX_PIXELS:
        raise DecodeError(f"has {width} x {height} pixels, at most {_MAX_PIXELS:,} are read")


def _npy(data: bytes, declared: Declared) -> Raw:
    """An array as numpy writes it; whole numbers of an image of 8 or 16 bits become 0..1."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DecodeError(f"is in numpy's format {version}, expected (1, 0) or (2, 0)")
    of_version = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    shape, is_fortran, dtype = of_version[version[0]](file)
    if dtype.kind not in "iuf":
        raise DecodeError(f"holds {dtype}, expected numbers; a pickle is never read")
    promised, there = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
    if min(shape, default=1) < 0 or promised > there:
        raise DecodeError(f"promises {promised:,} bytes of shape {shape}, {there:,} are there")
    values = np.frombuffer(data, dtype, math.prod(shape), file.tell())
    values = values.reshape(shape, order="F" if is_fortran else "C")
    return Raw(_in_unit_range(values, declared))


def _in_unit_range(values: npt.NDArray[Any], declared: Declared) -> npt.NDArray[Any]:
    """Return images of whole numbers in 0..1, all else as it is."""
    if declared.kind == "image" and values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return values / np.float32(np.iinfo(values.dtype).max)
    return values


def _video(data: bytes, declared: Declared) -> Raw:
    """(3 * stretches, height, width) in 0..1, the oldest stretch first."""
    parts, odd = divmod(declared.shape[0], 3)
    if odd:
        raise DecodeError(
            f"a video has 3 channels a frame: the {declared.shape[0]} channels of the declared "
            f"shape {declared.shape} must be a multiple of 3"
        )
    try:
        import av
    except ImportError as error:
        raise ImportError("mp4 needs PyAV: pip install mlecs_lightning[video]") from error
    # The format is named: a guess from the content could be a playlist of other files.
    with av.open(io.BytesIO(data), "r", format="mp4") as container:
        if not container.streams.video:
            raise DecodeError("has no video stream")
        stream = container.streams.video[0]
        _check_pixels(stream.codec_context.width, stream.codec_context.height * parts)
        count = sum(1 for packet in container.demux(stream) if packet.size)
        if count < stream.frames:
            raise DecodeError(f"is cut off: it promises {stream.frames} frames, {count} are there")
    images, seen = _frames(data, declared, stretches(count, parts))
    if seen != count:  # a packet need not hold a frame
        images, _ = _frames(data, declared, stretches(seen, parts))
    if not seen:
        raise DecodeError("has no frames")
    values = np.concatenate([images[part] for part in range(parts)])
    return Raw(values, source=(seen, *values.shape[1:]))


def _frames(
    data: bytes, declared: Declared, parts: list[tuple[int, int]]
) -> tuple[dict[int, npt.NDArray[np.float64]], int]:
    """Return the image of each stretch of frames, and how many frames there are."""
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
    "image": {".png": _image, ".jpg": _image, ".jpeg": _image, ".npy": _npy, ".mp4": _video},
    "series": {".npy": _npy, ".csv": read_csv, ".wav": read_wav, ".flac": read_sound},
    "vector": {".npy": _npy, ".csv": read_csv},
    "text": {".txt": _text},
}
