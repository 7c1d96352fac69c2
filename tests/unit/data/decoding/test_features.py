"""Spectrograms, against formulas and against scipy."""

import json

import numpy as np
import numpy.typing as npt
import pytest
from scipy.signal import ShortTimeFFT

from mlecs_lightning.data.decoding.files import decode, decode_array
from mlecs_lightning.data.decoding.preparation import Preparation
from mlecs_lightning.data.decoding.shapes import Declared, DecodeError, Raw, fitted
from mlecs_lightning.errors import ConfigurationError

MEL = {"kind": "log_mel", "bands": 20, "window": 0.032, "hop": 0.016}
LINEAR = {"kind": "spectrogram", "window": 0.032, "hop": 0.016}


def declared(features: object, **values: object) -> Declared:
    form = {"kind": "series", "shape": [1, 4000], "rate": 8000, "features": features}
    return Declared.from_values({**form, **values}, key="m")


def tone(hertz: float, *, points: int = 4000, rate: int = 8000) -> npt.NDArray[np.float32]:
    return np.sin(2 * np.pi * hertz * np.arange(points) / rate).astype(np.float32)[None]


def test_a_tone_is_where_its_frequency_is() -> None:
    spec = declared(LINEAR)
    assert spec.spec.shape == (129, 30)  # 256 points every 128: 1 + (4000 - 256) / 128
    for hertz in (500, 1000, 3000):
        values = decode_array(tone(hertz), spec).values
        assert values.shape == (129, 30)
        # A frequency of a window is 31.25 Hz.
        assert set(values.argmax(0)) == {round(hertz / 31.25)}
        # A Hann window of 256 points gives a full tone (256 / 4) ** 2.
        assert values.max() == pytest.approx(2 * np.log(64), abs=1e-3)


def test_the_spectrogram_is_that_of_scipy() -> None:
    sound = np.random.default_rng(0).normal(size=(1, 4000)).astype(np.float32)
    hann = np.hanning(257)[:-1]
    theirs = ShortTimeFFT(hann, 128, 8000).spectrogram(sound[0].astype(float), p0=1, p1=31)
    ours = decode_array(sound, declared(LINEAR)).values
    np.testing.assert_allclose(ours, np.log(theirs), atol=1e-4)


def test_mel_bands_rise_with_the_tone_and_silence_is_the_floor() -> None:
    loudest = [
        decode_array(tone(hertz), declared(MEL)).values.mean(1).argmax()
        for hertz in range(200, 4000, 200)
    ]
    assert loudest == sorted(loudest)
    assert len(set(loudest)) > 12
    silence = decode_array(np.zeros((1, 4000), np.float32), declared(MEL)).values
    np.testing.assert_allclose(silence, np.log(1e-10), rtol=1e-6)


def test_no_window_sees_what_comes_after_it() -> None:
    """So that the newest point of a live sensor is the newest that is seen."""
    sound = np.random.default_rng(1).normal(size=(1, 4000)).astype(np.float32)
    changed = sound.copy()
    changed[:, 2000:] = 0
    one, other = (decode_array(each, declared(MEL)).values for each in (sound, changed))
    whole = 1 + (2000 - 256) // 128  # windows that end before the change
    np.testing.assert_array_equal(one[:, :whole], other[:, :whole])
    assert (one[:, whole + 1 :] != other[:, whole + 1 :]).all()


def test_channels_lie_one_after_another() -> None:
    both = np.concatenate([tone(500), tone(3000)])
    stereo = declared(MEL, shape=[2, 4000])
    assert stereo.spec.shape == (40, 30)
    values = decode_array(both, stereo).values
    for part, channel in ((values[:20], both[:1]), (values[20:], both[1:])):
        np.testing.assert_array_equal(part, decode_array(channel, declared(MEL)).values)


def test_a_table_of_a_known_rate_has_features_too() -> None:
    """Shaking at 5 Hz, written as csv with 50 rows a second."""
    rows = tone(5, points=200, rate=50)[0]
    features = {"kind": "spectrogram", "window": 1.0, "hop": 0.5}
    spec = declared(features, shape=[1, 200], rate=50)
    values = decode("\n".join(map(str, rows)).encode(), ".csv", spec).values
    assert values.shape == spec.spec.shape == (26, 7)
    assert set(values.argmax(0)) == {5}


def test_a_recording_of_any_length_is_averaged_window_by_window() -> None:
    """Twice as long: the means of two windows each, of the whole recording."""
    short = declared(LINEAR, fit="resample")
    long = tone(500, points=8000)
    windows = declared(LINEAR, shape=[1, 8000])
    every = decode_array(long, windows).values  # 61 windows
    means = decode_array(long, short).values
    assert means.shape == (129, 30)
    np.testing.assert_allclose(means[:, 0], every[:, :2].mean(1), atol=1e-5)
    np.testing.assert_allclose(means[:, -1], every[:, 58:].mean(1), atol=1e-5)


def test_sound_of_another_rate_is_resampled_first() -> None:
    """Its rate times two, and the same tone: the same place."""
    raw = Raw(tone(500, points=8000, rate=16_000), 16_000)
    assert set(fitted(raw, declared(LINEAR)).values[:, 1:-1].argmax(0)) == {16}


def test_they_are_kept_with_the_model() -> None:
    preparation = Preparation(declared(MEL), mean=(0.0,) * 20, deviation=(1.0,) * 20)
    again = Preparation.from_dict(json.loads(json.dumps(preparation.to_dict())), key="x")
    assert again == preparation
    np.testing.assert_array_equal(again.read(tone(440)), preparation.read(tone(440)))
    # A checkpoint of earlier versions does not have the keys.
    earlier = {"kind": "series", "shape": [1, 9], "fit": "last", "rate": None, "frames": "last"}
    assert Preparation.from_dict(earlier, key="x").declared == Declared("series", [1, 9])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "image", "shape": [1, 8, 8], "rate": None}, "features are for kind 'series' onl"),
        ({"rate": None}, "features need `rate`, the points per second"),
        ({"shape": [1, 200]}, r"window is 0.032 s, but .* 200 points, that is 0.025 s at 8,000 Hz"),
        ({"features": {**MEL, "hop": 0.05}}, r"hop must be from 0.000125 s .* 0.032 s, got 0.05"),
        ({"features": {**MEL, "hop": 0}}, "features.hop must be a positive number of seconds"),
        ({"features": {**MEL, "window": float("nan")}}, "features.window must be a positive numb"),
        ({"rate": 50}, "window is 0.032 s, which is 2 points at 50 Hz; it needs at least 4, that "),
        (
            {"features": {**MEL, "bands": 200}},
            "bands is 200, but a window of 0.032 s at 8,000 Hz tells at most 128 mel bands apart",
        ),
        ({"features": {**MEL, "bands": 0}}, "features.bands must be at least 1, got 0"),
        ({"features": {**LINEAR, "bands": 9}}, "features.bands is for kind 'log_mel' only"),
        ({"features": {"window": 0.025}}, "m.features: kind is missing"),
        (
            {"features": {"kind": "mfcc"}},
            r"m.features.kind: expected one of \['log_mel', 'spectrogram'\], got 'mfcc'",
        ),
        ({"features": {**MEL, "size": 9}}, r"m.features: unknown keys \['size'\], known: \['kind'"),
        ({"features": "log_mel"}, "m.features: expected keys and their values or null, got 'log_m"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(
    values: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        declared(**{"features": MEL, **values})


@pytest.mark.parametrize("fit", ["last", "resample"])
def test_a_recording_shorter_than_a_window_is_refused(fit: str) -> None:
    with pytest.raises(DecodeError, match=r"has 100 points, that is 0.0125 s .* 0.032 s: leave it"):
        decode_array(tone(500, points=100), declared(MEL, fit=fit))
