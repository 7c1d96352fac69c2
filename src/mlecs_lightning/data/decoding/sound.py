"""Reads sound: wav files of integers by the standard library, all others by libsndfile."""

from __future__ import annotations

import importlib
import io
import struct
import wave
from collections.abc import Iterator

import numpy as np

from mlecs_lightning.data.decoding.shapes import Declared, DecodeError, Raw

__all__ = ["read_sound", "read_wav"]

# For compressed sound, whose file may be small: 0.5 GB in float32, an hour in stereo at 18 kHz.
_MAX_SAMPLES = 2**27

_REPAIR = "repair it (ffmpeg -i OLD.wav NEW.wav keeps what is there)"


def read_wav(data: bytes, declared: Declared) -> Raw:
    """Return the sound of a wav file, (channels, time) in [-1, 1].

    Args:
        data: Content of the file.
        declared: Not used; part of every reader's signature.

    Raises:
        DecodeError: If the file holds less than its header says, or no sound.
        ImportError: As `read_sound`, if its samples are not integers.
    """
    _check_chunks(data)
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            content = file.readframes(file.getnframes())
    except wave.Error as error:
        if not str(error).startswith("unknown format"):
            raise
        # The standard library reads integers only, not floats or compressed sound.
        return read_sound(data, declared)
    if rate < 1:
        raise DecodeError("has a sampling rate of 0 Hz; correct its header")
    if width == 1:
        samples = np.frombuffer(content, np.uint8).astype(np.float32) - 128
    else:  # move the bytes of every sample to the upper end of 32 bits, for one scale
        padded = np.zeros((len(content) // width, 4), np.uint8)
        padded[:, 4 - width :] = np.frombuffer(content, np.uint8).reshape(-1, width)
        samples = padded.view("<i4").ravel().astype(np.float64)
    scale = 2.0**7 if width == 1 else 2.0**31
    return Raw((samples / scale).reshape(-1, channels).T, rate)


def _check_chunks(data: bytes) -> None:
    """Compare all sizes in the header with the content, which no reader of sound does.

    Raises:
        DecodeError: If content is missing, or the sound is empty or ends within a sample.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return  # not a wav file, as the reader will report
    (promised,) = struct.unpack("<I", data[4:8])
    if promised > len(data) - 8:
        raise DecodeError(
            f"is cut off: its header promises {promised + 8:,} bytes, but it has {len(data):,}; "
            f"{_REPAIR}"
        )
    block = 1
    for kind, begin, size in _chunks(data):
        left = promised + 8 - begin
        if size > left:
            raise DecodeError(
                f"has a chunk {kind!r} of {size:,} bytes by its header, but {max(left, 0):,} are "
                f"left; {_REPAIR}"
            )
        if kind == "fmt " and size >= 16:
            block = max(struct.unpack("<H", data[begin + 12 : begin + 14])[0], 1)
        if kind == "data":
            _check_data_size(size, block)
            return
    raise DecodeError(f"has no chunk 'data'; {_REPAIR}")


def _check_data_size(size: int, block: int) -> None:
    if not size:
        raise DecodeError(f"is empty: its chunk 'data' has 0 bytes; {_REPAIR}")
    if size % block:
        raise DecodeError(
            f"ends within a sample: its chunk 'data' has {size:,} bytes, and a sample of all "
            f"channels {block}; {_REPAIR}"
        )


def _chunks(data: bytes) -> Iterator[tuple[str, int, int]]:
    """Yield name, begin and size of each chunk, according to their headers."""
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack("<4sI", data[position : position + 8])
        yield name.decode("latin-1"), position + 8, size
        position += 8 + size + size % 2  # chunks are padded to an even size


def read_sound(data: bytes, declared: Declared) -> Raw:
    """Return the sound of a file that libsndfile reads, (channels, time) in [-1, 1].

    Args:
        data: Content of the file.
        declared: Not used; part of every reader's signature.

    Raises:
        DecodeError: If the file holds less than its header says, or too much.
        ImportError: If the package soundfile is missing; the message names the extra.
    """
    try:
        soundfile = importlib.import_module("soundfile")
    except ImportError as error:
        raise ImportError(
            "flac, and wav with other samples than integers, need soundfile: "
            "pip install mlecs_lightning[audio]"
        ) from error
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        promised = file.frames
        if promised * file.channels > _MAX_SAMPLES:
            raise DecodeError(
                f"has {promised * file.channels:,} samples; at most {_MAX_SAMPLES:,} are allowed"
            )
        values = file.read(dtype="float32", always_2d=True)
    if len(values) < promised:
        raise DecodeError(
            f"is cut off: its header promises {promised:,} samples per channel, but it has "
            f"{len(values):,}"
        )
    return Raw(values.T, int(file.samplerate))
