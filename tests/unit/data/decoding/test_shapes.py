import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlecs_lightning.data.decoding.shapes import Declared, DecodeError, Raw, fitted, segments
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.types import ModalitySpec


def fit(values: object, rate: int = 0, **declared: object) -> list[object]:
    spec = Declared.from_values(declared, key="m")
    fits: list[object] = fitted(Raw(np.array(values), rate), spec).values.tolist()
    return fits


# Declarations -------------------------------------------------------------------------------------


def test_a_declaration_is_a_modality_with_options() -> None:
    declared = Declared.from_values({"kind": "series", "shape": [6, 50], "rate": 8000}, key="m")
    assert declared.spec == ModalitySpec("series", (6, 50))
    assert (declared.fit, declared.rate, declared.frames) == ("last", 8000, "last")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (7, r"m: expected \['kind', 'shape', 'fit', .*\], got 7"),
        ({"kind": "image"}, "m: shape is missing"),
        (
            {"kind": "sound", "shape": [1, 9]},
            r"m\.kind: expected one of \['vector', .* got 'sound'",
        ),
        ({"kind": "series", "shape": [9]}, r"m: .*'series' has 2 dimensions, got shape \(9,\)"),
        ({"kind": "series", "shape": [0, 9]}, "m: every size in shape must be at least 1"),
        ({"kind": "series", "shape": "6x50"}, r"m\.shape: expected a list of int, got '6x50'"),
        (
            {"kind": "series", "shape": [1, 9], "rate": 0},
            "m: rate must be from 1 to 1,000,000, got 0",
        ),
        (
            {"kind": "series", "shape": [1, 9], "rate": 10**9},
            "m: rate must be from 1 to 1,000,000, got 1,000,000,000",
        ),
        ({"kind": "vector", "shape": [9], "fit": "resample"}, "m: fit and rate are for kind"),
        ({"kind": "series", "shape": [1, 9], "frames": "mean"}, "m: frames is for kind 'image'"),
        (
            {"kind": "vector", "shape": [9], "size": 3},
            r"m: unknown keys \['size'\], known: \['kind",
        ),
    ],
)
def test_a_wrong_declaration_is_refused_in_words(values: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Declared.from_values(values, key="m")


# Series -------------------------------------------------------------------------------------------


def test_of_a_longer_series_the_last_points_are_kept() -> None:
    assert fit([[1, 2, 3, 4, 5]], kind="series", shape=[1, 3]) == [[3, 4, 5]]


def test_a_shorter_series_begins_with_copies_of_its_first_point() -> None:
    assert fit([[7, 8], [1, 2]], kind="series", shape=[2, 4]) == [[7, 7, 7, 8], [1, 1, 1, 2]]


@pytest.mark.parametrize(
    ("values", "length", "expected"),
    [
        ([1, 3, 5, 7], 2, [2, 6]),
        ([1, 3, 5, 7, 9], 2, [2, 7]),  # [1, 3] and [5, 7, 9]
        ([4, 8], 4, [4, 4, 4, 8]),  # 8 is complete at the very end
        ([4], 3, [4, 4, 4]),
        ([1, 2, 3], 3, [1, 2, 3]),
    ],
)
def test_resampling_takes_the_mean_of_equal_stretches(
    values: list[float], length: int, expected: list[float]
) -> None:
    assert fit([values], kind="series", shape=[1, length], fit="resample") == [expected]


@given(count=st.integers(1, 40), parts=st.integers(1, 40))
def test_no_stretch_reaches_beyond_its_time(count: int, parts: int) -> None:
    cut = segments(count, parts)
    assert len(cut) == parts
    assert cut[-1][1] == count
    for k, (begin, end) in enumerate(cut, start=1):
        assert begin < end
        assert end == 1 or end / count <= k / parts + 1e-12
    if count >= parts:
        assert cut[0][0] == 0
        assert all(before[1] == after[0] for before, after in pairwise(cut))


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from(["last", "resample"]))
def test_what_comes_later_changes_no_earlier_point(length: int, count: int, how: str) -> None:
    """The first half of the points does not depend on the second half of the series."""
    series = np.arange(float(count))
    changed = np.where(np.arange(count) < math.ceil(count / 2), series, 1e3)
    one, other = (
        np.array(fit([s], kind="series", shape=[1, length], fit=how)[0]) for s in (series, changed)
    )
    if how == "resample":
        assert (one[: length // 2] == other[: length // 2]).all()
    else:  # counted from the end, where the newest point is
        same = length - count // 2
        assert (one[: max(same, 0)] == other[: max(same, 0)]).all()


def test_sound_is_brought_to_the_declared_rate_before_it_is_cut() -> None:
    """A tone keeps its pitch: 50 Hz has 20 ms at any rate."""
    times = np.arange(4000) / 4000
    tone = np.sin(2 * np.pi * 50 * times)[None]
    declared = Declared("series", [1, 500], rate=1000)
    decoded = fitted(Raw(tone, 4000), declared)
    expected = np.sin(2 * np.pi * 50 * np.arange(500, 1000) / 1000)
    np.testing.assert_allclose(decoded.values[0, :-20], expected[:-20], atol=0.02)
    assert (decoded.source, decoded.rate) == ((1, 4000), 4000)


@pytest.mark.parametrize(
    ("points", "rate", "wanted", "message"),
    [
        (
            10_000,
            1,
            8000,
            "and would have 80,000,000 samples at the declared rate of 8,000 Hz, but at most",
        ),
        (5000, 7, 48_000, "and would have 34,285,714 samples at the declared rate of 48,000 Hz"),
        (
            10_000,
            2**31 - 1,
            8000,
            "2,147,483,647 Hz .* needs too long a filter",
        ),
        (10_000, 999_983, 1_000_000, "999,983 to 1,000,000, which needs too long a filter"),
    ],
)
def test_a_rate_that_would_fill_the_memory_is_refused(
    points: int, rate: int, wanted: int, message: str
) -> None:
    """Before any is taken: the header of a file of 20 kB says what it likes."""
    tracemalloc.start()
    with pytest.raises(DecodeError, match=message):
        fitted(
            Raw(np.zeros((1, points), np.float32), rate), Declared("series", [1, 9], rate=wanted)
        )
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


# Images and vectors -------------------------------------------------------------------------------


def test_an_image_made_smaller_is_averaged_over_its_whole_area() -> None:
    stripes = np.tile([1.0, 0.0, 0.0, 0.0], (1, 16, 4))  # every fourth column is white
    small = np.array(fit(stripes, kind="image", shape=[1, 4, 4]))
    np.testing.assert_allclose(small[0, :, 1:3], 0.25, atol=0.02)


def test_an_image_made_larger_keeps_its_corners() -> None:
    large = np.array(fit([[[0.0, 1.0], [0.0, 1.0]]], kind="image", shape=[1, 2, 4]))
    assert large.tolist() == [[[0, 0.25, 0.75, 1], [0, 0.25, 0.75, 1]]]


def test_one_channel_needs_no_dimension_of_its_own() -> None:
    assert fit([1, 2, 3], kind="series", shape=[1, 3]) == [[1, 2, 3]]
    assert fit([[1, 2], [3, 4]], kind="image", shape=[1, 2, 2]) == [[[1, 2], [3, 4]]]


@pytest.mark.parametrize(
    ("values", "kind", "shape", "message"),
    [
        (np.zeros((3, 9)), "series", [2, 9], r"shape \(3, 9\), .* \(2 channels, time\)"),
        (
            np.zeros(9),
            "series",
            [2, 9],
            r"shape \(9,\), but kind 'series' declares \(2 channels, time",
        ),
        (np.zeros((8, 8, 3)), "image", [3, 8, 8], r"shape \(8, 8, 3\), .* \(3 channels, height,"),
        (np.zeros((1, 8, 8)), "image", [3, 8, 8], r"shape \(1, 8, 8\), .* \(3 channels, height,"),
        (np.zeros(4), "vector", [5], r"shape \(4,\), but kind 'vector' declares \(5,\)"),
        (np.zeros((1, 5)), "vector", [5], r"shape \(1, 5\), but kind 'vector' declares \(5,\)"),
        (np.zeros((2, 0)), "series", [2, 9], "is empty"),
        ([1.0, np.nan], "vector", [2], "not finite in float32"),
        ([1.0, 1e39], "vector", [2], "not finite in float32"),
    ],
)
def test_what_does_not_fit_is_named_with_both_shapes(
    values: object, kind: str, shape: list[int], message: str
) -> None:
    with pytest.raises(DecodeError, match=message):
        fit(values, kind=kind, shape=shape)
