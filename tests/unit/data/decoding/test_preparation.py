import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mlecs_lightning.data.decoding.preparation import Preparation
from mlecs_lightning.data.decoding.shapes import Declared, DecodeError
from mlecs_lightning.functional import text_to_bytes

WAVE = Declared("series", [1, 4])


def standardised(column: Tensor, present: Tensor, public: Tensor) -> Tensor:
    declared = Declared("vector", [column.shape[1]])
    return Preparation.of(declared, column, present & public).scaled(column, present)


def test_mean_and_deviation_are_those_of_the_public_samples() -> None:
    column = torch.randn(60, 3, 20) * torch.tensor([1.0, 5.0, 2.0]).view(1, 3, 1) + 7
    public = torch.arange(60) < 20
    present = torch.ones(60, dtype=torch.bool)
    found = standardised(column, present, public)
    torch.testing.assert_close(found[:20].mean((0, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:20].std((0, 2), correction=0), torch.ones(3))
    moved = column.clone()
    moved[20:] += 100  # private values change nothing for others
    assert torch.equal(standardised(moved, present, public)[:20], found[:20])


def test_absent_samples_stay_zero_and_do_not_count() -> None:
    column = torch.tensor([[1.0], [3.0], [0.0], [0.0]])
    present = torch.tensor([True, True, False, False])
    public = torch.tensor([True, True, False, False])
    assert standardised(column, present, public).tolist() == [[-1], [1], [0], [0]]


def test_a_channel_that_hardly_varies_keeps_a_tenth_of_the_mean_deviation() -> None:
    column = torch.tensor([[-1.0, 5.0], [1.0, 5.0], [0.0, 6.0]])
    public = torch.tensor([True, True, False])
    found = standardised(column, torch.ones(3, dtype=torch.bool), public)
    # Deviations 1 and 0, their mean 0.5: one unit off is 20, not infinitely many, deviations.
    torch.testing.assert_close(found, torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 20.0]]))


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 5)])
def test_a_modality_that_never_varies_is_only_moved_to_zero(shape: tuple[int, ...]) -> None:
    everyone = torch.ones(4, dtype=torch.bool)
    column = torch.full((4, *shape), 9.0)
    assert not standardised(column, everyone, everyone).any()


# One input ----------------------------------------------------------------------------------------


def test_a_file_an_array_a_tensor_and_a_list_are_one_input(tmp_path: Path) -> None:
    values = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
    np.save(tmp_path / "x.npy", values)
    (tmp_path / "x.csv").write_text("1\n2\n3\n4\n")
    preparation = Preparation(WAVE, mean=(2.0,), deviation=(0.5,))
    given = [tmp_path / "x.npy", str(tmp_path / "x.csv"), values, torch.from_numpy(values)]
    for value in (*given, [[1, 2, 3, 4]], values.astype(int)):
        assert preparation.read(value).tolist() == [[-2.0, 0.0, 2.0, 4.0]]


def test_an_image_array_of_bytes_is_read_as_its_file_is(tmp_path: Path) -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    Image.fromarray(pixels).save(tmp_path / "x.png")
    preparation = Preparation(Declared("image", [1, 4, 4]))
    read = preparation.read(tmp_path / "x.png")
    assert read.max() == 1.0
    assert torch.equal(preparation.read(pixels), read)


def test_sound_is_brought_to_the_declared_rate(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "x.wav"), "wb") as sound:
        sound.setparams((1, 2, 16, 0, "NONE", ""))
        sound.writeframes(np.full(160, 2**14, "<i2").tobytes())
    read = Preparation(Declared("series", [1, 40], rate=8)).read(tmp_path / "x.wav")
    assert read[0, :30].tolist() == pytest.approx([0.5] * 30, abs=0.01)


def test_a_text_is_given_as_it_is_or_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("\ufeff  größer \n".encode())
    preparation = Preparation(Declared("text", [16]))
    expected = text_to_bytes("größer", 16)
    for value in ("größer", {"text": " größer"}, tmp_path / "x.txt", expected):
        assert torch.equal(preparation.read(value), expected)
    for value, said in (
        (" ", "is empty"),
        ("a\0b", "null character"),
        ("\ud800", "surrogates not allowed"),
        (["a"], 'inline text must be {"text": "..."}'),
        ({"text": "a", "b": 1}, 'inline text must be {"text": "..."}'),
        (np.zeros(3), "has shape (3,), but kind 'text' declares (16,)"),
    ):
        with pytest.raises(DecodeError) as caught:
            preparation.read(value)
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.array(["a"]), "holds <U1, expected numbers"),
        (np.zeros((2, 4)), "has shape (2, 4), but kind 'series' declares (1 channels, time)"),
        ("x.png", "'.ogg', '.wav'], not from '.png'"),
        ({"a": 1}, "an inline value must be a number"),
        ([np.nan], "not finite"),
    ],
)
def test_anything_else_is_refused(
    value: object, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.png").write_bytes(b"")
    with pytest.raises(DecodeError) as caught:
        Preparation(WAVE).read(value)
    assert said in str(caught.value)


def test_the_constants_survive_json_to_the_last_bit() -> None:
    column = torch.randn(50, 3, 7, generator=torch.Generator().manual_seed(0)) / 3
    everyone = torch.ones(50, dtype=torch.bool)
    one = Preparation.of(Declared("series", [3, 7], fit="resample"), column, everyone)
    other = Preparation.from_dict(json.loads(json.dumps(one.to_dict())), key="x")
    assert other == one
    assert torch.equal(other.scaled(column, everyone), one.scaled(column, everyone))
    plain = Preparation(WAVE)
    assert Preparation.from_dict(plain.to_dict(), key="x") == plain
