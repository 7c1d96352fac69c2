"""Files as phones, cameras and spreadsheets write them, each a real one."""

import io
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mlecs_lightning.data.decoding.files import decode
from mlecs_lightning.data.decoding.shapes import Declared, DecodeError
from mlecs_lightning.errors import ConfigurationError

RED, GREY = (200, 30, 60), 100
# ITU-R 601-2, as Pillow rounds it.
LUMA = (299 * 200 + 587 * 30 + 114 * 60) / 1000
OPAQUE = "without alpha were made opaque"
REPEATED = "in grey were repeated for red, green and blue"
ON_WHITE = "with alpha were laid on white"
TO_GREY = "in colour were made grey"


def picture(mode: str, colour: object, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (6, 4), colour).save(file, form, **options)  # type: ignore[arg-type]
    return file.getvalue()


def palette(**options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), RED).quantize(4).save(file, "PNG", **options)
    return file.getvalue()


def deep_grey() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6), GREY * 257, np.uint16)).save(file, "PNG")
    return file.getvalue()


def half(colour: tuple[int, ...]) -> list[float]:
    """A colour, half covering white."""
    return [(value * 128 + 255 * 127) / 255 for value in colour]


IMAGES: list[tuple[str, bytes, str, dict[int, list[float]], dict[int, tuple[str, ...]]]] = [
    (
        "grey",
        picture("L", GREY),
        ".png",
        {1: [GREY], 2: [GREY, 255], 3: [GREY] * 3, 4: [GREY] * 3 + [255]},
        {1: (), 2: (OPAQUE,), 3: (REPEATED,), 4: (OPAQUE, REPEATED)},
    ),
    (
        "colour",
        picture("RGB", RED),
        ".png",
        {1: [LUMA], 2: [LUMA, 255], 3: [*RED], 4: [*RED, 255]},
        {1: (TO_GREY,), 2: (OPAQUE, TO_GREY), 3: (), 4: (OPAQUE,)},
    ),
    (
        "alpha",
        picture("RGBA", (*RED, 128)),
        ".png",
        {1: [half((round(LUMA),))[0]], 3: half(RED), 4: [*RED, 128]},
        {1: (ON_WHITE, TO_GREY), 3: (ON_WHITE,), 4: ()},
    ),
    (
        "grey and alpha",
        picture("LA", (GREY, 128)),
        ".png",
        {1: half((GREY,)), 2: [GREY, 128], 3: half((GREY,)) * 3},
        {1: (ON_WHITE,), 2: (), 3: (ON_WHITE, REPEATED)},
    ),
    (
        "palette",
        palette(),
        ".png",
        {1: [LUMA], 3: [*RED]},
        {1: ("with a palette were looked up in it", TO_GREY)},
    ),
    (
        "palette with a transparent colour",
        palette(transparency=0),
        ".png",
        {3: [255] * 3},
        {3: ("with a palette were looked up in it", ON_WHITE)},
    ),
    ("one transparent colour", picture("RGB", RED, transparency=RED), ".png", {3: [255] * 3}, {}),
    (
        "CMYK",
        picture("CMYK", (0, 200, 200, 0), "JPEG", quality=100),
        ".jpg",
        {3: [255, 55, 55]},
        {3: ("in CMYK were converted to RGB",)},
    ),
    (
        "16 bits",
        deep_grey(),
        ".png",
        {1: [GREY], 2: [GREY, 255], 3: [GREY] * 3, 4: [GREY] * 3 + [255]},
        {1: ("of 16 bits were scaled to 0..1",), 3: ("of 16 bits were scaled to 0..1", REPEATED)},
    ),
    ("one bit", picture("1", 1), ".png", {1: [255], 3: [255] * 3}, {1: (), 3: (REPEATED,)}),
]


@pytest.mark.parametrize(
    ("data", "suffix", "expected", "changes"),
    [case[1:] for case in IMAGES],
    ids=[case[0] for case in IMAGES],
)
def test_colours_become_the_channels_of_the_shape(
    data: bytes,
    suffix: str,
    expected: dict[int, list[float]],
    changes: dict[int, tuple[str, ...]],
) -> None:
    for channels, values in expected.items():
        decoded = decode(data, suffix, Declared("image", [channels, 4, 6]))
        assert decoded.values.shape == (channels, 4, 6)
        means = decoded.values.mean((1, 2)) * 255
        np.testing.assert_allclose(means, values, atol=3 if suffix == ".jpg" else 1)
        assert decoded.values.min() >= 0
        assert decoded.values.max() <= 1
        if channels in changes:
            assert decoded.changes == changes[channels]


def test_an_image_has_no_nine_channels() -> None:
    with pytest.raises(DecodeError, match=r"9 channels, which only a video or npy can have"):
        decode(picture("RGB", RED), ".png", Declared("image", [9, 4, 6]))


# Sound --------------------------------------------------------------------------------------------


def sound(samples: npt.NDArray[np.int16]) -> bytes:
    """Write (time, channels) as wav."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((samples.shape[1], 2, 8000, 0, "NONE", ""))
        writer.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


LEFT_RIGHT = np.array([[0, 2**14], [2**14, 2**14], [-(2**14), 0]])


@pytest.mark.parametrize(
    ("samples", "channels", "expected", "changes"),
    [
        (LEFT_RIGHT, 2, [[0, 0.5, -0.5], [0.5, 0.5, 0]], ()),
        (LEFT_RIGHT, 1, [[0.25, 0.5, -0.25]], ("in stereo were mixed to one channel",)),
        (LEFT_RIGHT[:, :1], 2, [[0, 0.5, -0.5]] * 2, ("in mono were repeated for 2 channels",)),
        (
            np.repeat(LEFT_RIGHT[:, :1], 6, axis=1),
            1,
            [[0, 0.5, -0.5]],
            ("of 6 channels were mixed to one channel",),
        ),
    ],
)
def test_sound_is_mixed_or_repeated(
    samples: npt.NDArray[np.int16],
    channels: int,
    expected: list[list[float]],
    changes: tuple[str, ...],
) -> None:
    decoded = decode(sound(samples), ".wav", Declared("series", [channels, 3]))
    np.testing.assert_allclose(decoded.values, expected, atol=1e-6)
    assert decoded.changes == changes
    assert decoded.source == samples.T.shape


def test_channels_that_cannot_be_mixed_are_refused() -> None:
    with pytest.raises(DecodeError, match=r"has 2 channels, .* has 3: declare 2, or 1 to have"):
        decode(sound(LEFT_RIGHT), ".wav", Declared("series", [3, 3]))


def recorded(path: Path) -> bytes:
    """A tone of half a second in stereo, as a phone compresses it."""
    av = pytest.importorskip("av")
    tone = np.sin(2 * np.pi * 440 * np.arange(22_050) / 44_100).astype(np.float32) / 2
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=44_100, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def test_m4a_of_a_phone_is_a_tone_again(tmp_path: Path) -> None:
    data = recorded(tmp_path / "memo.m4a")
    decoded = decode(data, ".m4a", Declared("series", [1, 2048], rate=8000))
    assert decoded.rate == 44_100
    assert decoded.changes == ("in stereo were mixed to one channel",)
    spectrum = np.abs(np.fft.rfft(decoded.values[0]))
    assert spectrum.argmax() * 8000 / 2048 == pytest.approx(440, abs=4)
    for cut in (len(data) // 2, 100, 0):
        with pytest.raises(DecodeError):
            decode(data[:cut], ".m4a", Declared("series", [1, 2048], rate=8000))


def test_m4a_without_its_decoder_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"m4a needs PyAV: .*mlecs_lightning\[video\]"):
        decode(b"", ".m4a", Declared("series", [1, 9]))


@pytest.mark.parametrize("form", ["MP3", "OGG"])
def test_compressed_sound_is_a_tone_again(form: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000) / 2
    soundfile.write(file, tone, 16_000, format=form)
    decoded = decode(file.getvalue(), f".{form.lower()}", Declared("series", [1, 2048], rate=8000))
    spectrum = np.abs(np.fft.rfft(decoded.values[0]))
    assert spectrum.argmax() * 8000 / 2048 == pytest.approx(440, abs=4)


@pytest.mark.parametrize(
    ("kind", "shape", "suffix", "remedy"),
    [
        ("series", [1, 9], ".aac", "convert it: ffmpeg -i OLD NEW.wav"),
        ("image", [3, 4, 4], ".heic", "save it as png"),
        ("image", [3, 4, 4], ".mov", "ffmpeg -i OLD NEW.mp4"),
        ("vector", [3], ".xlsx", "save it as csv"),
        ("series", [1, 9], ".tsv", "rename it to .csv"),
        ("text", [9], ".docx", "save its text as txt"),
    ],
)
def test_what_nobody_reads_is_refused_with_a_remedy(
    kind: str, shape: list[int], suffix: str, remedy: str
) -> None:
    declared = Declared.from_values({"kind": kind, "shape": shape}, key="m")
    with pytest.raises(DecodeError, match=remedy):
        decode(b"", suffix, declared)


# Tables -------------------------------------------------------------------------------------------

GERMAN = "Zeit;x;y;Ort\n10:00;1,5;-2,5;Küche\n10:01;3;4e-1;Flur\n"
SPACED = "  1.0   2.0\n\n 3.0\t4.0 \n"


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        (GERMAN, {"columns": ["x", "y"], "decimal": ","}, [[1.5, 3], [-2.5, 0.4]]),
        (GERMAN, {"columns": ["y", "x"], "decimal": ","}, [[-2.5, 0.4], [1.5, 3]]),
        (GERMAN, {"columns": [2, 3], "decimal": ","}, [[1.5, 3], [-2.5, 0.4]]),
        ("a,1,2\nb,3,4\n", {"columns": [2, 3]}, [[1, 3], [2, 4]]),
        ("1|2\n3|4\n", {"delimiter": "|"}, [[1, 3], [2, 4]]),
        (SPACED, {"delimiter": " "}, [[1, 3], [2, 4]]),
        ("1st,2nd\n1,2\n3,4\n", {"header": True}, [[1, 3], [2, 4]]),
        ("1st,2nd\n1,2\n3,4\n", {"header": True, "columns": ["2nd", 1]}, [[2, 4], [1, 3]]),
        ("1,5\t2,5\n3\t4\n", {"decimal": ","}, [[1.5, 3], [2.5, 4]]),
    ],
)
def test_a_table_is_read_as_it_is_declared(
    text: str, form: dict[str, Any], expected: list[list[float]]
) -> None:
    declared = Declared.from_values({"kind": "series", "shape": [2, 2], "csv": form}, key="m")
    values = decode(text.encode(), ".csv", declared).values
    np.testing.assert_allclose(values, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        (GERMAN, {"columns": ["x", "z"], "decimal": ","}, "has no column called 'z', only"),
        (GERMAN, {"columns": ["X", "y"]}, "has no column called 'X', .*; 'x' differs from it in"),
        (GERMAN, {"columns": ["x", "y"]}, "column 2: '1,5' has a decimal comma; .* csv.decimal"),
        (GERMAN, {"columns": [1, 2], "decimal": ","}, "line 2, column 1: '10:00' is not a number"),
        (GERMAN, {"columns": [2, 9]}, "line 2: has 4 columns, and csv.columns asks for column 9"),
        ("x,x\n1,2\n", {"columns": ["x", 2]}, "has 2 columns called 'x': give the number of one"),
        ("1,2\n", {"columns": ["x", "y"]}, "has no header in its first row, and csv.columns asks"),
        ("x,y,\n1,2\n", {"columns": ["x", "y"]}, "line 2: has 2 fields, but the header 3 names"),
        ("x;y\n1.000,5;2\n", {"decimal": ","}, "'1.000,5' has a point, but csv.decimal is ','"),
        ("x,y\n1,2\n", {"header": False}, "line 1, column 1: 'x' is not a number; correct"),
        ("1|2\n", {}, "line 1: has 1 columns, .* another mark, set csv.delimiter"),
        ("1,2,3\n", {}, "has 3 columns, .* 2 channels; choose columns with csv.columns"),
    ],
)
def test_a_table_that_is_not_as_declared_is_refused(
    text: str, form: dict[str, Any], message: str
) -> None:
    declared = Declared.from_values({"kind": "series", "shape": [2, 2], "csv": form}, key="m")
    with pytest.raises(DecodeError, match=message):
        decode(text.encode(), ".csv", declared)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"columns": ["x"]}, "m: csv.columns has 1 columns, but the declared shape has 2 channels"),
        ({"columns": [1, 1]}, r"m: csv.columns names \[1\] more than once"),
        ({"columns": [0, 1]}, "names, or numbers from 1, got"),
        ({"columns": []}, "csv.columns is empty: leave it out"),
        ({"columns": ["x", "y"], "header": False}, "has names, so csv.header cannot be false"),
        ({"delimiter": ";;"}, "csv.delimiter must be one character"),
        ({"delimiter": "-"}, "csv.delimiter must be one character"),
        ({"delimiter": ",", "decimal": ","}, "csv.delimiter and csv.decimal are both ','"),
        ({"decimal": ";"}, r"m.csv.decimal: expected one of \['.', ','\], got ';'"),
        ({"sep": ";"}, r"m.csv: unknown keys \['sep'\], known: \['columns', 'delimiter'"),
    ],
)
def test_a_form_that_no_table_has_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Declared.from_values({"kind": "series", "shape": [2, 2], "csv": values}, key="m")


def test_only_tables_have_a_form() -> None:
    with pytest.raises(ConfigurationError, match="csv is for kinds 'series' and 'vector' only"):
        Declared.from_values({"kind": "text", "shape": [9], "csv": {"decimal": ","}}, key="m")
