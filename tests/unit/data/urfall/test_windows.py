from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlecs_lightning.data.urfall.files import Recording, read_recordings
from mlecs_lightning.data.urfall.windows import cut_windows, median_background


def ramp() -> Recording:
    """A recording whose every value tells when it was taken; frames 41 to 45 have no label."""
    frame = np.concatenate([np.arange(1, 41), np.arange(46, 61)])
    times = np.arange(-50.0, 2000.0, 10.0)
    seconds = (times / 1000).astype(np.float32)
    video = np.broadcast_to(np.arange(1, 61, dtype=np.uint8)[:, None, None, None], (60, 24, 32, 3))
    return Recording(
        name="ramp",
        frame=frame,
        label=(frame % 3).astype(np.int64),
        depth=np.repeat(frame[:, None], 8, axis=1).astype(np.float32),
        acc_ms=times,
        acc=np.stack([seconds, -seconds, 2 * seconds, 3 * seconds], axis=1),
        video=video + 100 * np.arange(2, -1, -1, dtype=np.uint8),  # red 200, green 100, blue 0
    )


def test_values_of_a_window_lie_on_its_grid() -> None:
    windows = cut_windows(ramp(), seconds=1.0, stride=1)
    at = int(np.flatnonzero(windows.frame == 46)[0])
    end = 45 / 30  # seconds
    assert windows.label[at] == 46 % 3
    # Interpolated: a nearest sample would be off by up to 5 ms. The last sample is that of 1.500 s.
    grid = end - 1 + np.arange(1, 33) / 32
    np.testing.assert_allclose(windows.inputs["acc"][at, 0], grid, atol=1e-6)
    np.testing.assert_allclose(windows.inputs["acc"][at, 3], 3 * grid, atol=1e-6)
    # Instants 3.75 frames apart, the nearest labelled frame: 42.25 has 40, 46 itself is the last.
    # (Two more instants lie half-way between frames.)
    assert windows.inputs["depth"][at, 0, [0, 2, 3, 4, 6, 7]].tolist() == [20, 27, 31, 35, 40, 46]
    # Frames 26, 36 and 46, each as red, green, blue.
    colours = [frame + plus for frame in (26, 36, 46) for plus in (200, 100, 0)]
    assert windows.inputs["rgb"][at, :, 5, 7].tolist() == colours


def test_accelerometer_is_held_after_its_last_known_sample() -> None:
    recording = ramp()
    kept = recording.acc_ms % 100 == 0
    slow = replace(recording, acc_ms=recording.acc_ms[kept], acc=recording.acc[kept])
    windows = cut_windows(slow, seconds=1.0, stride=1)
    at = int(np.flatnonzero(windows.frame == 39)[0])  # 1.267 s; instants 31 ms apart
    expected = [1.2 - 0.027083, 1.2, 1.2, 1.2]
    np.testing.assert_allclose(windows.inputs["acc"][at, 0, -4:], expected, atol=1e-5)


def test_nothing_after_the_end_changes_a_window(urfd_root: Path) -> None:
    """The impact of fall-01 is within a second of this frame, in all three modalities."""
    pytest.importorskip("av")
    recording = read_recordings(urfd_root, ["fall-01"])["fall-01"]
    falling = np.flatnonzero(recording.label == 1)
    last = int(recording.frame[falling[-2]])
    end = recording.frame_ms[falling[-2]]
    assert recording.video is not None
    video, acc, depth = recording.video.copy(), recording.acc.copy(), recording.depth.copy()
    video[last:] = 255 - video[last:]
    acc[recording.acc_ms > end] += 5
    depth[recording.frame > last] += 5
    changed = replace(recording, video=video, acc=acc, depth=depth)
    before, after = (cut_windows(r, seconds=1.0, stride=1) for r in (recording, changed))
    at = int(np.flatnonzero(before.frame == last)[0])
    for modality in ("acc", "depth", "rgb"):
        one, other = before.inputs[modality], after.inputs[modality]
        np.testing.assert_array_equal(one[: at + 1], other[: at + 1], err_msg=modality)
        assert np.any(one[at + 1] != other[at + 1]), modality  # the very next window sees it
    # Nor does what is still to come decide which windows there are.
    past = recording.acc_ms <= end
    cut = replace(recording, acc_ms=recording.acc_ms[past], acc=recording.acc[past])
    early = cut_windows(cut, seconds=1.0, stride=1).frame
    np.testing.assert_array_equal(early[early <= last], before.frame[: at + 1])


def test_windows_that_the_accelerometer_does_not_cover_are_left_out() -> None:
    recording = ramp()
    # First sample at -50 ms, first instant 31.25 ms after the window's start: from 818.75 ms on.
    assert cut_windows(recording, seconds=1.0, stride=1).frame[0] == 26
    kept = ~((recording.acc_ms > 1400) & (recording.acc_ms < 1650))
    holed = replace(recording, acc_ms=recording.acc_ms[kept], acc=recording.acc[kept])
    # Frame 46 (1500 ms) is 100 ms from the last sample. Frame 47 is further off; frame 50 is close
    # to the next sample, but its window has instants in the middle of the hole.
    frames = cut_windows(holed, seconds=1.0, stride=1).frame
    assert frames.tolist() == [*range(26, 41), 46]


def test_sample_that_is_still_to_come_does_not_count() -> None:
    recording = ramp()
    kept = ~((recording.acc_ms > 1400) & (recording.acc_ms < 1590))
    holed = replace(recording, acc_ms=recording.acc_ms[kept], acc=recording.acc[kept])
    # All instants are within 95 ms of a sample; frames 47 and 48 come before that of 1590 ms.
    frames = cut_windows(holed, seconds=1.0, stride=1).frame
    assert frames.tolist() == [*range(26, 41), 46, *range(49, 61)]


def test_stride_counts_labelled_frames() -> None:
    every, third = (cut_windows(ramp(), seconds=1.0, stride=k) for k in (1, 3))
    np.testing.assert_array_equal(third.frame, every.frame[::3])
    np.testing.assert_array_equal(third.inputs["depth"], every.inputs["depth"][::3])


def test_background_is_the_median_by_colour() -> None:
    video = np.zeros((5, 24, 32, 3), np.uint8)
    video[:, ..., 0] = np.array([1, 2, 9, 9, 90])[:, None, None]
    background = median_background(video)
    assert background.shape == (9, 24, 32)
    assert background[:, 3, 4].tolist() == [9, 0, 0] * 3
