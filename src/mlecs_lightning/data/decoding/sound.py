"""Reads sound.

wav files of integers are read by the standard library; flac, mp3, ogg and other wav files by
libsndfile (package soundfile, extra ``audio``); m4a by FFmpeg (PyAV, extra ``video``).
"""

from __future__ import annotations

import importlib
import io
import struct
import wave
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mlecs_lightning.data.decoding.shapes import Declared, DecodeError, Raw
from mlecs_lightning.extras import Need, require

__all__ = ["read_m4a", "read_sound", "read_wav"]

# For compressed sound, whose file may be small: 0.5 GB in float32, an hour in stereo at 18 kHz.
_MAX_SAMPLES = 2**27

_REPAIR = "repair it (ffmpeg -i OLD.wav NEW.wav keeps what is there)"


def read_wav(data: bytes, declared: Declared) -> Raw:
    """Return the sound of a wav file, (channels, time) in [-1, 1].

    Args:
        data: Content of the file.
        declared: The form of the modality.

    Raises:
        DecodeError: If the file holds less than its header says, or no sound.
        ImportError: As `read_sound`, if its samples are not integers.
    """
    _check_chunks(data)
    plain = _with_plain_tag(data)
    if plain is None:
        return read_sound(data, declared)
    with wave.open(io.BytesIO(plain)) as file:
        channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
        content = file.readframes(file.getnframes())
    if rate < 1:
        raise DecodeError("has a sampling rate of 0 Hz; correct its header")
    if width == 1:
        samples = np.frombuffer(content, np.uint8).astype(np.float32) - 128
    else:  # move the bytes of every sample to the upper end of 32 bits, for one scale
        padded = np.zeros((len(content) // width, 4), np.uint8)
        padded[:, 4 - width :] = np.frombuffer(content, np.uint8).reshape(-1, width)
        samples = padded.view("<i4").ravel().astype(np.float64)
    scale = 2.0**7 if width == 1 else 2.0**31
    return _as_declared((samples / scale).reshape(-1, channels).T, rate, declared)


def _with_plain_tag(data: bytes) -> bytes | None:
    """Return a wav file of integers in the form that every Python reads; ``None`` for others.

    What the standard library says of floats and extensible headers differs between its versions.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return data  # not a wav file, as the reader will report
    for kind, begin, size in _chunks(data):
        if kind == "fmt " and size >= 16:
            (tag,) = struct.unpack("<H", data[begin : begin + 2])
            if tag == 0xFFFE and size >= 40:  # extensible: the kind follows in its subformat
                (tag,) = struct.unpack("<H", data[begin + 24 : begin + 26])
                data = data[:begin] + struct.pack("<H", tag) + data[begin + 2 :]
            return data if tag == 1 else None
    return data


def _as_declared(samples: npt.NDArray[Any], rate: int, declared: Declared) -> Raw:
    """Mix all channels to one, or repeat a single one, where the declared shape asks for it.

    Raises:
        DecodeError: If the channels differ in another way.
    """
    channels, wanted = len(samples), declared.shape[0]
    if channels == wanted:
        return Raw(samples, rate)
    if wanted == 1:
        what = "in stereo were" if channels == 2 else f"of {channels} channels were"
        mixed = samples.mean(0, keepdims=True)
        return Raw(mixed, rate, samples.shape, (f"{what} mixed to one channel",))
    if channels == 1:
        repeated = np.repeat(samples, wanted, axis=0)
        return Raw(repeated, rate, samples.shape, (f"in mono were repeated for {wanted} channels",))
    raise DecodeError(
        f"has {channels} channels, but the declared shape {declared.shape} has {wanted}: declare "
        f"{channels}, or 1 to have them mixed"
    )


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
        declared: The form of the modality.

    Raises:
        DecodeError: If the file holds less than its header says, or too much.
        ImportError: If the package soundfile is missing; the message names the extra.
    """
    what = "sound in flac, mp3, ogg, or in wav with other samples than integers,"
    remedy = "convert it: ffmpeg -i OLD -c:a pcm_s16le NEW.wav"
    require(Need(what, "audio", ("soundfile",), otherwise=remedy))
    soundfile = importlib.import_module("soundfile")
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
    return _as_declared(values.T, int(file.samplerate), declared)


def read_m4a(data: bytes, declared: Declared) -> Raw:
    """Return the sound of an m4a file, as phones record it, (channels, time) in [-1, 1].

    Args:
        data: Content of the file.
        declared: The form of the modality.

    Raises:
        DecodeError: If the file has no sound, or too much.
        ImportError: If PyAV is missing; the message names the extra.
    """
    require(Need("m4a", "video", otherwise="convert it: ffmpeg -i OLD.m4a NEW.wav"))
    import av

    parts: list[npt.NDArray[Any]] = []
    # The format is fixed: PyAV could take the content for a playlist that names other files.
    with av.open(io.BytesIO(data), "r", format="mp4") as container:
        if not container.streams.audio:
            raise DecodeError("has no sound")
        stream = container.streams.audio[0]
        channels, rate = stream.codec_context.channels, stream.codec_context.sample_rate
        promised = float((stream.duration or 0) * (stream.time_base or 0))
        floats, read = av.AudioResampler(format="fltp"), 0
        for frame in container.decode(stream):
            parts += [part.to_ndarray() for part in floats.resample(frame)]
            read += frame.samples
            if read * channels > _MAX_SAMPLES:
                raise DecodeError(f"has more than {_MAX_SAMPLES:,} samples; cut it")
    if not parts:
        raise DecodeError("has no sound")
    if read < (promised - 0.1) * rate:
        raise DecodeError(
            f"is cut off: its header promises {promised:.2f} s, but it has {read / rate:.2f} s"
        )
    return _as_declared(np.concatenate(parts, axis=1), rate, declared)
