"""Reads images, and brings their colours to the channels of the declared shape."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlecs_lightning.data.decoding.shapes import Declared, DecodeError, Raw

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["check_pixels", "read_image"]

# Larger than the images of any camera; 50 million RGB pixels are 150 MB.
_MAX_PIXELS = 50_000_000

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Pillow's name of the colours that a number of channels holds."""


def read_image(data: bytes, declared: Declared) -> Raw:
    """Return an image (channels, height, width) in [0, 1], upright.

    Colours are brought to the channels of the declared shape: 1 for grey, 3 for red, green and
    blue, 2 and 4 for these with alpha. Grey is repeated, colour becomes its luma (ITU-R 601-2),
    what is transparent is laid on white, and what has no alpha is opaque.

    Args:
        data: Content of a png or jpg file.
        declared: The form of the modality.

    Raises:
        DecodeError: If it has too many pixels, or the shape has another number of channels.
    """
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # No other format, whatever the content says: for some, Pillow runs external programs.
        image: Image.Image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    check_pixels(*image.size)
    image = ImageOps.exif_transpose(image)
    wanted = _MODES.get(declared.shape[0])
    if wanted is None:
        raise DecodeError(
            f"is an image, but the declared shape {declared.shape} has {declared.shape[0]} "
            f"channels, which only a video or npy can have; an image has one of {list(_MODES)}"
        )
    changes: list[str] = []
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        changes.append("of 16 bits were scaled to 0..1")
        pixels = np.array(image, np.float32) / 65535
        return Raw(_grey_as(pixels, wanted, changes), changes=tuple(changes))
    if data[:4] == b"\x89PNG" and data[24] == 16:  # the bit depth in the header
        changes.append("of 16 bits were read with 8, as Pillow does with colours")
    image = _converted(image, wanted, changes)
    pixels = np.array(image, np.float32)
    pixels /= 255  # in place, to need the memory of a large image only once
    return Raw(np.atleast_3d(pixels).transpose(2, 0, 1), changes=tuple(changes))


def check_pixels(width: int, height: int) -> None:
    """Check the size that a header tells.

    Raises:
        DecodeError: If there are too many pixels.
    """
    if width * height > _MAX_PIXELS:
        raise DecodeError(f"has {width} x {height} pixels; at most {_MAX_PIXELS:,} are allowed")


def _converted(image: Image, wanted: str, changes: list[str]) -> Image:
    """Return the image in the wanted mode; what is done to it is added to ``changes``."""
    is_transparent = "transparency" in image.info
    if image.mode == "P":
        changes.append("with a palette were looked up in it")
        image = image.convert("RGBA" if is_transparent else "RGB")
    elif is_transparent and image.mode in ("1", "L", "RGB"):  # one colour is transparent
        image = image.convert("RGBA")
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        changes.append(f"in {image.mode} were converted to RGB")
        image = image.convert("RGB")
    if image.mode.endswith("A") and not wanted.endswith("A"):
        changes.append("with alpha were laid on white")
        image = _on_white(image)
    elif wanted.endswith("A") and not image.mode.endswith("A"):
        changes.append("without alpha were made opaque")
    if wanted.startswith("RGB") and image.mode.startswith("L"):
        changes.append("in grey were repeated for red, green and blue")
    elif wanted.startswith("L") and image.mode.startswith("RGB"):
        changes.append("in colour were made grey")
    return image if image.mode == wanted else image.convert(wanted)


def _on_white(image: Image) -> Image:
    from PIL import Image as images

    layer = image.convert("RGBA")
    white = images.new("RGBA", layer.size, "white")
    return images.alpha_composite(white, layer).convert(image.mode.removesuffix("A"))


def _grey_as(pixels: npt.NDArray[Any], wanted: str, changes: list[str]) -> npt.NDArray[Any]:
    """Return grey pixels (height, width) as (channels, height, width)."""
    channels = [pixels]
    if wanted.startswith("RGB"):
        changes.append("in grey were repeated for red, green and blue")
        channels *= 3
    if wanted.endswith("A"):
        changes.append("without alpha were made opaque")
        channels.append(np.ones_like(pixels))
    return np.stack(channels)
