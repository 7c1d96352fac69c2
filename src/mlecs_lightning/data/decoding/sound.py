"""Sound in a manifest: wav of whole numbers by the standard library, all else by libsndfile."""

from __future__ import annotations

import importlib
import io
import struct
import wave
from collections.abc import Iterator

import numpy as np

from mlecs_lightning.data.decoding.shapes import Declared, DecodeError, Raw

__all__ = ["read_sound", "read_wav"]

# Of compressed sound, whose file may be small: 0.5 GB in float32, an hour in stereo at 18 kHz.
_MAX_POINTS = 2**27

_AGAIN = "write the recording anew (ffmpeg -i OLD.wav NEW.wav keeps what there is)"


def read_wav(data: bytes, declared: Declared) -> Raw:
    """Return (channels, time) in -1..1 of a wav file.

    Raises:
        DecodeError: If the file holds less than its header says, or no sound.
        ImportError: As `read_sound`, if it holds other than whole numbers.
    """
    _check_chunks(data)
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            content = file.readframes(file.getnframes())
    except wave.Error as error:
        if not str(error).startswith("unknown format"):
            raise
        # Not the whole numbers that the standard library reads: floats, or compressed.
        return read_sound(data, declared)
    if rate < 1:
        raise DecodeError("declares 0 points a second; correct its header")
    if width == 1:
        points = np.frombuffer(content, np.uint8).astype(np.float32) - 128
    else:  # the bytes of every number to the upper end of 32 bits, which scales them alike
        padded = np.zeros((len(content) // width, 4), np.uint8)
        padded[:, 4 - width :] = np.frombuffer(content, np.uint8).reshape(-1, width)
        points = padded.view("<i4").ravel().astype(np.float64)
    scale = 2.0**7 if width == 1 else 2.0**31
    return Raw((points / scale).reshape(-1, channels).T, rate)


def _check_chunks(data: bytes) -> None:
    """Compare all sizes in the header with what is there: no reader of sound does.

    Raises:
        DecodeError: If they promise more, or the sound is empty or ends within a point.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return  # no wav at all, as the reader will say
    (promised,) = struct.unpack("<I", data[4:8])
    if promised > len(data) - 8:
        raise DecodeError(
            f"is cut off: its header promises {promised + 8:,} bytes, {len(data):,} are there; "
            f"{_AGAIN}"
        )
    block = 1
    for kind, begin, size in _chunks(data):
        end = begin + size
        if end > promised + 8:
            raise DecodeError(
                f"has a chunk {kind!r} that promises {size:,} bytes, "
                f"{max(promised + 8 - begin, 0):,} are there by its header; {_AGAIN}"
            )
        if kind == "fmt " and size >= 16:
            block = max(struct.unpack("<H", data[begin + 12 : begin + 14])[0], 1)
        if kind == "data":
            if not size:
                raise DecodeError(f"is empty: its chunk 'data' has 0 bytes; {_AGAIN}")
            if size % block:
                raise DecodeError(
                    f"ends within a point: its chunk 'data' has {size:,} bytes, and a point of all "
                    f"channels {block}; {_AGAIN}"
                )
            return
    raise DecodeError(f"has no chunk 'data'; {_AGAIN}")


def _chunks(data: bytes) -> Iterator[tuple[str, int, int]]:
    """Yield name, begin and size of each chunk, as their headers say."""
    place = 12
    while place + 8 <= len(data):
        name, size = struct.unpack("<4sI", data[place : place + 8])
        yield name.decode("latin-1"), place + 8, size
        place += 8 + size + size % 2  # an odd chunk is filled up


def read_sound(data: bytes, declared: Declared) -> Raw:
    """Return (channels, time) in -1..1, by libsndfile.

    Raises:
        DecodeError: If there is less of it than its header says, or too much.
        ImportError: If the package soundfile is missing; it names the extra.
    """
    try:
        soundfile = importlib.import_module("soundfile")
    except ImportError as error:
        raise ImportError(
            "flac, and wav of other than whole numbers, need soundfile: "
            "pip install mlecs_lightning[audio]"
        ) from error
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        promised = file.frames
        if promised * file.channels > _MAX_POINTS:
            raise DecodeError(f"has {promised} points a channel, too many to read")
        values = file.read(dtype="float32", always_2d=True)
    if len(values) < promised:
        raise DecodeError(
            f"is cut off: its header promises {promised:,} points a channel, {len(values):,} are "
            "there"
        )
    return Raw(values.T, int(file.samplerate))
