import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mlecs_lightning.data.urfall.files import read_recordings
from mlecs_lightning.data.urfall.video import read_video
from mlecs_lightning.storage.cache import seal

av = pytest.importorskip("av")
Images = npt.NDArray[np.uint8]


def slow_gradients(frames: int, *, size: int = 10) -> tuple[Images, Images]:
    """Colour gradients (F, 24, 32, 3), and the same with each pixel a block of ``size``."""
    row, column, frame = np.arange(24), np.arange(32), np.arange(frames)
    red = 40 + 4 * row[None, :, None] + 0 * column + 0 * frame[:, None, None]
    green = 60 + 3 * column + 0 * red
    blue = 80 + 10 * frame[:, None, None] + 0 * red
    small = np.stack([red, green, blue], axis=-1).astype(np.uint8)
    return small, small.repeat(size, axis=1).repeat(size, axis=2)


def write_mp4(path: Path, images: Images) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30, options={"qmin": "1", "qmax": "2"})
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("layout", ["depth beside RGB", "RGB alone"])
def test_both_layouts_give_the_rgb_image(tmp_path: Path, layout: str) -> None:
    small, rgb = slow_gradients(4)
    depth = np.full_like(rgb, 250)
    both = np.concatenate([depth, rgb], axis=2)
    write_mp4(tmp_path / "rgb_cam0/fall-01-cam0.mp4", both if "depth" in layout else rgb)
    (tmp_path / "accelerometer").mkdir()
    (tmp_path / "accelerometer/fall-01-acc.csv").write_text("0,1,0,1,0\n")
    (tmp_path / "labels_depth_features").mkdir()
    (tmp_path / "labels_depth_features/urfall-cam0-falls.csv").write_text(
        "fall-01,2,-1,1,2,3,4,5,6,7,8\nfall-01,4,0,1,2,3,4,5,6,7,8\n"
    )
    recording = read_recordings(tmp_path, ["fall-01"], cache_dir=tmp_path)["fall-01"]
    assert recording.video is not None
    assert recording.video.shape == (4, 24, 32, 3)
    # The deviation is of the lossy video: the other half would be off by over 100.
    shown = recording.video[recording.frame - 1].astype(int)
    assert np.abs(shown - small[[1, 3]]).max() <= 6


def test_frames_are_means_of_blocks_not_picked_pixels(tmp_path: Path) -> None:
    _, images = slow_gradients(2)
    stripes = np.zeros_like(images)
    stripes[:, ::2] = 200  # every other line: the mean of each block is 100
    write_mp4(tmp_path / "a.mp4", stripes)
    assert np.abs(read_video(tmp_path / "a.mp4", cache_dir=tmp_path).astype(int) - 100).max() <= 6


def test_second_reading_does_not_decode(tmp_path: Path) -> None:
    video, cache = tmp_path / "a.mp4", tmp_path / "cache"
    write_mp4(video, slow_gradients(3)[1])
    before = video.stat()
    first = read_video(video, cache_dir=cache)
    video.write_bytes(b"?" * before.st_size)
    os.utime(video, ns=(before.st_atime_ns, before.st_mtime_ns))
    np.testing.assert_array_equal(read_video(video, cache_dir=cache), first)
    # No temporary file stays behind.
    assert [path.suffix for path in (cache / "urfall").iterdir()] == [".npy"]


def test_changed_video_is_decoded_again(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    for frames in (3, 2):
        write_mp4(video, slow_gradients(frames)[1])
        assert len(read_video(video, cache_dir=tmp_path)) == frames


def flipped(whole: bytes, place: int) -> bytes:
    content = bytearray(whole)
    content[place] ^= 1
    return bytes(content)


DAMAGES = {
    "truncated": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "a pixel flipped": lambda whole: flipped(whole, 5000),
    "a length flipped": lambda whole: flipped(whole, whole.index(b"(3, 24") + 1),
    "of an earlier version, without a checksum": lambda whole: whole[:-32],
    "of another video": lambda whole: seal(whole[:-32], key="b.mp4/1/1/1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_is_made_again(tmp_path: Path, damage: str) -> None:
    video = tmp_path / "a.mp4"
    write_mp4(video, slow_gradients(3)[1])
    first = read_video(video, cache_dir=tmp_path)
    [cached] = (tmp_path / "urfall").iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(DAMAGES[damage](whole))
    assert cached.read_bytes() != whole
    np.testing.assert_array_equal(read_video(video, cache_dir=tmp_path), first)
    assert cached.read_bytes() == whole


def test_without_a_place_for_the_cache_the_video_is_read(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", slow_gradients(3)[1])
    (tmp_path / "urfall").write_text("a file where the folder should be")
    assert len(read_video(tmp_path / "a.mp4", cache_dir=tmp_path)) == 3


def test_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mp4(tmp_path / "a.mp4", slow_gradients(1)[1])
    monkeypatch.setenv("MLECS_CACHE", str(tmp_path / "here"))
    read_video(tmp_path / "a.mp4")
    assert len(list((tmp_path / "here/urfall").glob("a-*.npy"))) == 1


def test_odd_size_and_missing_pyav_name_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, images = slow_gradients(1)
    write_mp4(tmp_path / "odd.mp4", images[:, :230])
    with pytest.raises(ValueError, match=r"odd\.mp4: an RGB image of 320 x 230"):
        read_video(tmp_path / "odd.mp4", cache_dir=tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r"odd\.mp4 .*mlecs_lightning\[video\]"):
        read_video(tmp_path / "odd.mp4", cache_dir=tmp_path)
