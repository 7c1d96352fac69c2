"""Sound files that hold less than they say."""

import io
import struct
import wave

import numpy as np
import pytest

from mlecs_lightning.data.decoding.files import decode
from mlecs_lightning.data.decoding.shapes import Declared, DecodeError


def sound(points: int = 100, *, width: int = 2, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(8000)
        writer.writeframes(bytes(range(1, 1 + points * width * channels)))
    return file.getvalue()


def chunked(*chunks: tuple[bytes, bytes], size: int | None = None) -> bytes:
    """Put chunks of the given names and contents into a RIFF of the given size."""
    body = b"WAVE" + b"".join(
        name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
        for name, content in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def form(*, channels: int = 1, rate: int = 8000, width: int = 2) -> tuple[bytes, bytes]:
    block = channels * width
    return b"fmt ", struct.pack("<HHIIHH", 1, channels, rate, rate * block, block, 8 * width)


SOUND = sound()
DATA = (b"data", bytes(8))
NOTE = (b"LIST", b"odd")  # filled up by a byte, as all chunks of odd length


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            SOUND[:-1],
            "is cut off: its header promises 244 bytes, but it has 243; repair it",
        ),
        (SOUND[:-100], "is cut off: its header promises 244 bytes, but it has 144"),
        (SOUND[:44], "is cut off: its header promises 244 bytes, but it has 44"),
        (SOUND[:30], "is cut off"),
        (SOUND[:40] + b"\xff\xff\xff\x7f" + SOUND[44:], "chunk 'data' of 2,147,483,647"),
        (SOUND[:4] + b"\xff\xff\xff\xff" + SOUND[8:], "its header promises 4,294,967,303 bytes"),
        # The reader of the standard library stops where the outer size says.
        (chunked(form(), DATA, size=40), "'data' of 8 bytes by its header, but 4 are left"),
        (chunked(form(), DATA, size=0), "chunk 'fmt ' of 16 bytes by its header, but 0 are left"),
        (chunked(form(), (b"data", b"")), "is empty: its chunk 'data' has 0 bytes"),
        (
            chunked(form(), (b"data", bytes(7))),
            "ends within a sample: .* has 7 bytes, .* channels 2",
        ),
        (chunked(form(channels=2), (b"data", bytes(6))), "ends within a sample: .* 6 bytes, .* 4"),
        (chunked(form()), "has no chunk 'data'"),
        (chunked(form(rate=0), DATA), "has a sampling rate of 0 Hz"),
    ],
)
def test_a_sound_that_is_not_whole_is_refused(data: bytes, message: str) -> None:
    channels = data[22] if len(data) > 22 else 1
    with pytest.raises(DecodeError, match=message):
        decode(data, ".wav", Declared("series", [channels, 4]))


def test_no_length_of_a_sound_but_its_own_is_read() -> None:
    declared = Declared("series", [1, 4])
    whole = decode(SOUND, ".wav", declared)
    for length in range(len(SOUND)):
        with pytest.raises(DecodeError):
            decode(SOUND[:length], ".wav", declared)
    again = decode(SOUND + b"ID3 of a music store", ".wav", declared)
    np.testing.assert_array_equal(again.values, whole.values)


@pytest.mark.parametrize(
    ("data", "points"),
    [
        (chunked(NOTE, form(), NOTE, DATA, NOTE), 4),
        (chunked(form(width=1), (b"data", bytes(3))), 3),
        (chunked(form(width=1), (b"data", bytes(3)))[:-1], None),  # the byte that fills it up
        (sound(3, width=3, channels=2), 3),
    ],
    ids=["other chunks", "odd", "odd and not filled up", "three bytes"],
)
def test_an_unusual_sound_is_whole(data: bytes, points: int | None) -> None:
    if points is None:
        data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    decoded = decode(
        data, ".wav", Declared("series", [data[22] if data[12:16] == b"fmt " else 1, 2])
    )
    assert decoded.source[1] == (points or 3)


@pytest.mark.parametrize("kind", ["FLAC", "WAV"])
def test_compressed_and_float_sound_that_is_cut_off_is_refused(kind: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, (5000, 1))
    subtype = "PCM_16" if kind == "FLAC" else "FLOAT"
    soundfile.write(file, noise, 16000, format=kind, subtype=subtype)
    data = file.getvalue()
    assert decode(data, f".{kind.lower()}", Declared("series", [1, 4])).source == (1, 5000)
    for length in (len(data) - 1, len(data) - 2000, len(data) // 3):
        with pytest.raises(DecodeError):
            decode(data[:length], f".{kind.lower()}", Declared("series", [1, 4]))


@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_16"])
def test_a_wav_file_is_read_whatever_its_header(form: str, subtype: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    file, noise = io.BytesIO(), np.random.default_rng(0).uniform(-0.9, 0.9, (500, 1))
    soundfile.write(file, noise, 16000, format=form, subtype=subtype)
    found = decode(file.getvalue(), ".wav", Declared("series", [1, 500])).values
    np.testing.assert_allclose(found[0], noise[:, 0], atol=1e-6 if subtype == "FLOAT" else 1e-4)


def test_integers_with_an_extensible_header_need_no_package() -> None:
    name, plain = form()
    subformat = struct.pack("<H", 1) + bytes.fromhex("000000001000800000aa00389b71")
    wide = struct.pack("<H", 0xFFFE) + plain[2:] + struct.pack("<HHI", 22, 16, 4) + subformat
    data = (b"data", bytes(range(8)))
    one, other = (
        decode(chunked(head, data), ".wav", Declared("series", [1, 4])).values
        for head in ((name, wide), (name, plain))
    )
    np.testing.assert_array_equal(one, other)
