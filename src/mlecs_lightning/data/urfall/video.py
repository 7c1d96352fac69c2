"""Reads the cam0 videos of UR Fall as small RGB frames, and caches them."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlecs_lightning.extras import Need, require
from mlecs_lightning.settings import cache_dir as default_cache_dir
from mlecs_lightning.storage.cache import read_entry, write_entry

if TYPE_CHECKING:
    from av import VideoFrame

__all__ = ["FRAME_SIZE", "read_video"]

FRAME_SIZE = (24, 32)
"""Height and width of the cached frames; each pixel is a 10 x 10 block of a 320 x 240 video."""

# Part of every cache name: increase it whenever the same video would give different frames.
_VERSION = 1
# Width over height: one camera image has 4:3, the official pair of depth and RGB 8:3.
_TWO_IMAGES = 2.0


def read_video(path: Path, *, cache_dir: Path | None = None) -> npt.NDArray[np.uint8]:
    """Read all frames of a video, or return them from the cache.

    The official cam0 video shows the depth map in its left half and RGB in its right half. A video
    that is more than twice as wide as high has this layout, and only its right half is kept; others
    are RGB only and are kept whole.

    Args:
        path: The mp4 file.
        cache_dir: Folder of the cache, `mlecs_lightning.settings.cache_dir` by default. A file
            whose name, size or modification time has changed is decoded again.

    Returns:
        (F, 24, 32, 3) uint8 RGB frames; each pixel is the mean of its block.

    Raises:
        ImportError: If the video must be decoded and PyAV is not installed.
        ValueError: If the video has no frames, or height and width are not multiples of 24 and 32.
    """
    source = path.stat()
    key = f"{path.name}/{source.st_size}/{source.st_mtime_ns}/{_VERSION}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    cached = (cache_dir or default_cache_dir()) / "urfall" / f"{path.stem}-{digest}.npy"
    kept = read_entry(cached, key=key)
    if kept is not None:
        known: npt.NDArray[np.uint8] = np.load(io.BytesIO(kept), allow_pickle=False)
        return known
    frames, content = _decode(path), io.BytesIO()
    np.save(content, frames, allow_pickle=False)
    write_entry(cached, content.getvalue(), key=key)
    return frames


def _decode(path: Path) -> npt.NDArray[np.uint8]:
    remedy = "leave rgb out of data.init_args.modalities"
    require(Need(f"the video {path}", "video", otherwise=remedy))
    import av

    with av.open(path) as container:
        frames = [_shrink(frame, path) for frame in container.decode(video=0)]
    if not frames:
        raise ValueError(f"{path}: the video has no frames")
    return np.stack(frames)


def _shrink(frame: VideoFrame, path: Path) -> npt.NDArray[np.uint8]:
    """Cut out the RGB image (height, width, 3) and average its blocks."""
    image = frame.to_ndarray(format="rgb24")
    if frame.width > _TWO_IMAGES * frame.height:
        image = image[:, frame.width // 2 :]
    height, width = FRAME_SIZE
    if image.shape[0] % height or image.shape[1] % width:
        raise ValueError(
            f"{path}: an RGB image of {image.shape[1]} x {image.shape[0]} pixels "
            f"does not divide into {width} x {height} blocks"
        )
    down, across = image.shape[0] // height, image.shape[1] // width
    # Rows first, and in integers: a mean over both axes at once takes six times as long.
    rows = image.reshape(height, down, -1).sum(axis=1, dtype=np.uint32)
    sums = rows.reshape(height, width, across, 3).sum(axis=2)
    small: npt.NDArray[np.uint8] = np.rint(sums / (down * across)).astype(np.uint8)
    return small
