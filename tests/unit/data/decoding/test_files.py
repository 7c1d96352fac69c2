"""Real files, written here, and files that only claim to be some."""

import io
import pickle
import struct
import wave
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mlecs_lightning.data.decoding.files import decode, decode_inline
from mlecs_lightning.data.decoding.shapes import Declared, Decoded, DecodeError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 8, 3)).astype(np.uint8)


def image(*shape: int, **options: str) -> Declared:
    return Declared.from_values({"kind": "image", "shape": list(shape), **options}, key="m")


def series(*shape: int) -> Declared:
    return Declared("series", list(shape))


def saved(pixels: npt.NDArray[np.generic], format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def npy(array: npt.NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# Images -------------------------------------------------------------------------------------------


def test_a_png_becomes_channels_first_in_zero_to_one() -> None:
    decoded = decode(saved(PIXELS), ".png", image(3, 6, 8))
    np.testing.assert_allclose(decoded.values, PIXELS.transpose(2, 0, 1) / 255, atol=1e-7)
    assert decoded.values.dtype == np.float32
    assert decoded.source == (3, 6, 8)


@pytest.mark.parametrize(
    ("pixels", "channels", "expected"),
    [
        (PIXELS[..., 0], 1, PIXELS[None, ..., 0] / 255),
        (PIXELS[..., 0].astype(np.uint16) * 257, 1, PIXELS[None, ..., 0] / 255),
        (PIXELS[..., 0] > 127, 1, PIXELS[None, ..., 0] > 127),
        (np.dstack([PIXELS, PIXELS[..., 0]]), 4, None),
    ],
    ids=["grey", "16 bits", "1 bit", "with transparency"],
)
def test_depths_and_channels_of_png(
    pixels: npt.NDArray[np.generic], channels: int, expected: npt.NDArray[np.generic] | None
) -> None:
    values = decode(saved(pixels), ".png", image(channels, 6, 8)).values
    wanted = np.moveaxis(pixels, -1, 0) / 255 if expected is None else expected
    np.testing.assert_allclose(values, wanted, atol=1e-6)


def test_a_palette_is_looked_up() -> None:
    file = io.BytesIO()
    Image.fromarray(PIXELS // 128 * 255).quantize(8).save(file, "PNG")
    values = decode(file.getvalue(), ".png", image(3, 6, 8)).values
    np.testing.assert_array_equal(values, (PIXELS // 128).transpose(2, 0, 1))


def test_a_photo_that_was_turned_is_turned_back() -> None:
    grey = np.repeat(np.repeat(np.array([[0, 255]], np.uint8), 16, 0), 8, 1)  # dark left, 16 x 16
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera says: turn by 90 degrees to the right
    data = saved(grey, "JPEG", quality=95, exif=exif)
    values = decode(data, ".jpg", image(1, 16, 16)).values[0]
    assert values[:7].max() < 0.2
    assert values[9:].min() > 0.8


def test_an_array_of_bytes_is_scaled_as_a_png_is() -> None:
    channels_first = np.ascontiguousarray(PIXELS.transpose(2, 0, 1))
    values = decode(npy(channels_first), ".npy", image(3, 6, 8)).values
    np.testing.assert_array_equal(values, decode(saved(PIXELS), ".png", image(3, 6, 8)).values)
    assert decode(npy(channels_first.astype(float)), ".npy", image(3, 6, 8)).values.max() == 255


# Series and vectors -------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["", "x,y\n", "\ufeffx,y\n"], ids=["none", "names", "marked"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_the_columns_of_csv_are_channels(header: str, mark: str) -> None:
    text = f"{header}1,10\n2,20.5\n\n3,-3e1\n".replace(",", mark)
    decoded = decode(text.encode(), ".csv", series(2, 3))
    assert decoded.values.tolist() == [[1, 2, 3], [10, 20.5, -30]]


@pytest.mark.parametrize("text", ["1,2,3", "1\n2\n3\n", "a,b,c\n1,2,3\n"])
def test_a_row_or_a_column_of_csv_is_a_vector(text: str) -> None:
    assert decode(text.encode(), ".csv", Declared("vector", [3])).values.tolist() == [1, 2, 3]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", "<i8", "|u1"])
def test_arrays_of_any_number_and_order_are_read(order: str, dtype: str) -> None:
    array = np.asarray(np.arange(6).reshape(2, 3), dtype=dtype, order=order)  # type: ignore[call-overload]
    assert decode(npy(array), ".npy", series(2, 3)).values.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(("width", "step"), [(1, 1 / 128), (2, 2**-15), (3, 2**-23), (4, 2**-31)])
def test_sound_of_any_width_lies_between_minus_one_and_one(width: int, step: float) -> None:
    numbers = np.array([[0, 1], [-1, 100], [-(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1]])
    stored = numbers + (128 if width == 1 else 0)
    content = b"".join(
        int(n).to_bytes(width, "little", signed=width > 1) for n in stored.ravel().tolist()
    )
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(width)
        sound.setframerate(16000)
        sound.writeframes(content)
    decoded = decode(file.getvalue(), ".wav", series(2, 3))
    np.testing.assert_allclose(decoded.values, numbers.T * step, atol=1e-7)
    assert (decoded.rate, decoded.source) == (16000, (2, 3))


def test_sound_of_floats_asks_for_the_package_that_reads_it() -> None:
    try:
        import soundfile  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("soundfile is installed")
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", 40, b"WAVE", b"fmt ", 16, 3, 1, 8000),
        *(32000, 4, 32, b"data", 4),
    )
    with pytest.raises(ImportError, match=r"needs soundfile: .*mlecs_lightning\[audio\]"):
        decode(head + bytes(4), ".wav", series(1, 1))
    with pytest.raises(ImportError, match="soundfile"):
        decode(b"fLaC", ".flac", series(1, 1))


def test_flac_says_what_wav_says() -> None:
    soundfile = pytest.importorskip("soundfile")
    points = np.array([[0, 100], [-(2**15), 2**15 - 1], [7, -7]], np.int16)
    decoded = []
    for kind in ("FLAC", "WAV"):
        file = io.BytesIO()
        soundfile.write(file, points, 16000, format=kind, subtype="PCM_16")
        decoded.append(decode(file.getvalue(), f".{kind.lower()}", series(2, 3)))
    assert decoded[0].values.tolist() == decoded[1].values.tolist()
    assert decoded[0].rate == decoded[1].rate == 16000


# Videos -------------------------------------------------------------------------------------------


def filmed(path: Path, **options: str) -> bytes:
    """Six frames of 16 x 16 pixels that go from black to white in equal steps."""
    av = pytest.importorskip("av")
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for level in range(6):
            pixels = np.full((16, 16, 3), level * 51, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A fade to white."""
    return filmed(tmp_path_factory.mktemp("video") / "fade.mp4")


@pytest.mark.parametrize(
    ("channels", "frames", "levels"),
    [
        (3, "last", [1.0]),
        (6, "last", [0.4, 1.0]),
        (9, "last", [0.2, 0.6, 1.0]),
        (3, "mean", [0.5]),
        (6, "mean", [0.2, 0.8]),
        (21, "last", [0.0, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),  # seven stretches of six frames
    ],
)
def test_frames_are_evenly_spaced_and_the_last_is_the_newest(
    video: bytes, channels: int, frames: str, levels: list[float]
) -> None:
    decoded = decode(video, ".mp4", image(channels, 4, 4, frames=frames))
    found = decoded.values.reshape(len(levels), -1).mean(1)
    np.testing.assert_allclose(found, levels, atol=0.03)
    assert decoded.source == (6, 16, 16)


def test_a_video_needs_three_channels_a_frame(video: bytes) -> None:
    with pytest.raises(DecodeError, match=r"the 4 channels of .* must be a multiple of 3"):
        decode(video, ".mp4", image(4, 4, 4))


def test_a_playlist_that_is_called_a_video_opens_no_other_file(
    video: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg follows it, if it may guess the format: this one plays the other file."""
    (tmp_path / "secret.mp4").write_bytes(video)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DecodeError, match=r"is not a valid \.mp4 file"):
        decode(b"ffconcat version 1.0\nfile secret.mp4\n", ".mp4", image(3, 4, 4))


# Inline -------------------------------------------------------------------------------------------


def test_inline_numbers_are_read_in_the_order_of_the_shape() -> None:
    assert decode_inline([[1, 2], [3, 4.5]], series(2, 2)).values.tolist() == [[1, 2], [3, 4.5]]
    assert decode_inline(7, Declared("vector", [1])).values.tolist() == [7]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1], [2, 3]], "equal lengths"),
        (["1", "2"], "got \\['1', '2'\\]"),
        ([True, False], "a list of numbers"),
        ({"x": 1}, "a list of numbers"),
        ([None, 1], "a list of numbers"),
        ([10**400, 1], "a list of numbers"),
        ([], "is empty"),
    ],
)
def test_inline_values_that_are_no_numbers_are_refused(value: object, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        decode_inline(value, Declared("vector", [2]))


# Hostile and broken files -------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png_bomb() -> bytes:
    """A megabyte of zeros, deflated, that claims to be 10 billion pixels."""
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(2**20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def npy_header(text: str, version: bytes = b"\x01\x00") -> bytes:
    content = text.encode().ljust(118) + b"\n"
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(content))
    return b"\x93NUMPY" + version + length + content


class Trap:
    """Would run a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (1250000000, 1)}"
NEGATIVE = "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1)}"
PICKLED = np.array([Trap()], object)


@pytest.mark.parametrize(
    ("data", "suffix", "message"),
    [
        (png_bomb(), ".png", r"DecompressionBombError|has 100000 x 100000 pixels"),
        (saved(PIXELS)[:-40], ".png", r"is not a valid \.png file: \w+: "),
        (saved(np.zeros((2, 2), np.uint8), "GIF"), ".png", "cannot identify image file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ".png", "cannot identify"),
        (b"", ".png", "cannot identify"),
        (npy_header(HUGE), ".npy", r"shape .* needs 10,000,000,000 bytes, but 0 follow"),
        (npy_header(NEGATIVE) + bytes(8), ".npy", r"shape \(-1, -1\) needs 8 bytes"),
        (npy_header(HUGE)[:30], ".npy", "is not a valid .npy file: ValueError: EOF"),
        (npy_header("__import__('os').abort()"), ".npy", "malformed node or string"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", ".npy", "is not a valid .npy file"),
        (b"\x93NUMPY\x09\x00", ".npy", r"version \(9, 0\) of numpy's format"),
        (npy(PICKLED), ".npy", "holds object, expected numbers; pickles are not read"),
        (pickle.dumps(Trap()), ".npy", "magic string is not correct"),
        (npy(np.array(["1", "2"])), ".npy", "holds <U1, expected numbers"),
        (npy(np.zeros((3, 0))), ".npy", "is empty"),
        (b"PK\x03\x04" + bytes(40), ".npy", "magic string is not correct"),
    ],
)
def test_a_bad_image_is_refused(data: bytes, suffix: str, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        decode(data, suffix, image(3, 6, 8))


@pytest.mark.parametrize(
    ("data", "suffix", "message"),
    [
        (b"x,y\n1,2\n3,four\n", ".csv", r"line 3, column 2: 'four' is not a number; correct"),
        (b"1,2\n3\n", ".csv", "line 2: expected 2 fields as in the first row, got 1"),
        (b"1,2\n3,inf\n", ".csv", "line 2, column 2: 'inf' is not a finite number"),
        (b"x,y\n", ".csv", "is empty"),
        ("1,2\n".encode("utf-16"), ".csv", "is no text in UTF-8 but in UTF-16: save it anew"),
        (
            b"1,2,3\n",
            ".csv",
            r"line 1: has 3 columns, but the declared shape \[2, 3\] has 2 channels",
        ),
        (
            b"no sound at all",
            ".wav",
            "is not a valid .wav file: Error: file does not start with RIFF",
        ),
        (b"RIFF\x04\x00\x00\x00WAVE", ".wav", "has no chunk 'data'"),
        (b"1,2", ".txt", r"read from \['.csv', '.flac', '.m4a', '.mp3', '.*\], not from '.txt'"),
        (b"1,2", "", "not from 'a file without an extension'"),
    ],
)
def test_a_bad_series_is_refused(data: bytes, suffix: str, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        decode(data, suffix, series(2, 3))


def test_a_cut_off_video_is_read_or_refused_but_never_crashes(video: bytes) -> None:
    for length in range(0, len(video), 97):
        try:
            decoded: Decoded | None = decode(video[:length], ".mp4", image(3, 4, 4))
        except DecodeError:
            decoded = None
        assert decoded is None or decoded.values.shape == (3, 4, 4)


def test_a_video_whose_index_survives_the_cut_is_refused(tmp_path: Path) -> None:
    """The index stands in front, as for the web: all frames are promised, some are there."""
    whole = filmed(tmp_path / "web.mp4", movflags="faststart")
    assert decode(whole, ".mp4", image(3, 4, 4)).source[0] == 6
    for cut in (20, 60, 100):
        with pytest.raises(
            DecodeError, match=r"is cut off: it should have 6 frames|is not a valid"
        ):
            decode(whole[:-cut], ".mp4", image(3, 4, 4))


def test_a_small_file_of_a_large_image_takes_no_memory() -> None:
    """Zeros deflate to a thousandth."""
    large = np.zeros((7100, 7100), np.uint8)
    data = saved(large)
    assert len(data) < 200_000
    with pytest.raises(
        DecodeError, match=r"has 7100 x 7100 pixels; at most 50,000,000 are allowed"
    ):
        decode(data, ".png", image(1, 4, 4))
