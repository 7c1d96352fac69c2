from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mlecs_lightning.data.urfall.files import CLASSES, Recording, read_recordings
from mlecs_lightning.data.urfall.split import SCENES

HEADER = "Sequence Name,Frame #,Label,a,b,c,d,e,f,g,h\n"


@pytest.fixture(scope="module")
def reference(urfd_root: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Another reader's alignment of the same files."""
    with np.load(urfd_root / "urfd_frames.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def recordings(
    urfd_root: Path, reference: dict[str, npt.NDArray[np.generic]]
) -> dict[str, Recording]:
    pytest.importorskip("av")
    return read_recordings(urfd_root, [str(name) for name in reference["seq_names"]])


def nearest_acc(
    recording: Recording,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Return the accelerometer sample nearest to each labelled frame, and its distance in ms."""
    gaps = np.abs(recording.frame_ms[:, None] - recording.acc_ms)
    nearest = gaps.argmin(axis=1)
    return recording.acc[nearest], gaps[np.arange(len(gaps)), nearest]


def shown_rgb(recording: Recording) -> npt.NDArray[np.uint8]:
    """Return the video at the labelled frames."""
    assert recording.video is not None
    return recording.video[recording.frame - 1]


def test_frames_equal_the_reference(
    recordings: dict[str, Recording], reference: dict[str, npt.NDArray[np.generic]]
) -> None:
    """All 11,544 labelled frames of the 70 sequences, field by field."""
    assert list(reference["class_names"]) == list(CLASSES)
    all_of = list(recordings.values())
    names = np.array([r.name for r in all_of for _ in r.frame])
    np.testing.assert_array_equal(names, reference["seq_names"][reference["seq"]])
    np.testing.assert_array_equal(np.concatenate([r.frame for r in all_of]), reference["frame"])
    np.testing.assert_array_equal(np.concatenate([r.label for r in all_of]), reference["y"])
    np.testing.assert_array_equal(
        np.concatenate([r.depth for r in all_of]), reference["depth_feat"]
    )
    np.testing.assert_allclose(
        np.concatenate([r.frame_ms for r in all_of]), reference["t_ms"], rtol=0, atol=1e-3
    )
    values, gaps = map(np.concatenate, zip(*map(nearest_acc, all_of), strict=True))
    expected = np.column_stack([reference["acc"], reference["acc_sv"]])
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(gaps, reference["acc_gap_ms"], rtol=0, atol=1e-3)
    rgb = np.concatenate([shown_rgb(r) for r in all_of]).astype(int)
    assert np.abs(rgb - reference["rgb"]).max() <= 2
    assert np.bincount(reference["y"].astype(int)).tolist() == [7452, 1719, 2373]


def test_frame_times_are_those_of_the_sync_file(
    urfd_root: Path, recordings: dict[str, Recording]
) -> None:
    frame, time = np.loadtxt(urfd_root / "sync/fall-01-data.csv", delimiter=",").T[:2]
    recording = recordings["fall-01"]
    np.testing.assert_array_equal(frame, recording.frame)
    np.testing.assert_allclose(recording.frame_ms, time, rtol=0, atol=5.4)


def test_scenes_are_those_of_the_reference(reference: dict[str, npt.NDArray[np.generic]]) -> None:
    scenes = reference["scene_names"][reference["scene"]]
    names = reference["seq_names"][reference["seq"]]
    assert {str(n): str(s) for n, s in zip(names, scenes, strict=True)} == SCENES


def write_files(folder: Path, features: str, acc: str, *, flat: bool = False) -> Path:
    files = {
        "labels_depth_features/urfall-cam0-falls.csv": features,
        "accelerometer/fall-01-acc.csv": acc,
    }
    for name, text in files.items():
        path = folder / (Path(name).name if flat else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize("header", ["", HEADER], ids=["no header", "header"])
@pytest.mark.parametrize("flat", [False, True], ids=["folders", "flat"])
def test_columns_are_told_apart(tmp_path: Path, header: str, flat: bool) -> None:
    features = "fall-01,3,1,1,2,3,4,5,6,7,8\nfall-01,2,-1,8,7,6,5,4,3,2,1\nfall-02,1,0" + ",0" * 8
    write_files(tmp_path, header + features, "40,9,1,2,3\n-3,8,4,5,6\n", flat=flat)
    recording = read_recordings(tmp_path, ["fall-01"], video=False)["fall-01"]
    assert recording.frame.tolist() == [2, 3]
    assert recording.label.tolist() == [CLASSES.index("upright"), CLASSES.index("lying")]
    assert recording.depth[1].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert recording.acc_ms.tolist() == [-3, 40]
    assert recording.acc.tolist() == [[4, 5, 6, 8], [1, 2, 3, 9]]  # SV comes first in the file
    assert recording.video is None


GOOD = "fall-01,1,-1,1,2,3,4,5,6,7,8\n"


@pytest.mark.parametrize(
    ("features", "acc", "message"),
    [
        (HEADER + GOOD + "fall-01,2,-1,1\n", "0,1,0,1,0\n", r"falls\.csv:3: expected 11 fields"),
        (
            GOOD + "fall-01,2,5,1,2,3,4,5,6,7,8",
            "0,1,0,1,0\n",
            r"falls\.csv:2: label '5' is not one of",
        ),
        (GOOD + "fall-01,x,0,1,2,3,4,5,6,7,8", "0,1,0,1,0\n", r"falls\.csv:2: 'x' is not a frame"),
        ("fall-01,0,0,1,2,3,4,5,6,7,8\n", "0,1,0,1,0\n", r"falls\.csv:1: '0' is not a frame"),
        (GOOD + "fall-01,2,0,1,2,nan,4,5,6,7,8", "0,1,0,1,0", r"falls\.csv:2: not a finite number"),
        (GOOD, "0,1,0,1,0\n\n1,1,zero,1,0\n", r"fall-01-acc\.csv:3: could not convert .*'zero'"),
        (GOOD, "0,1,0,1\n", r"fall-01-acc\.csv:1: expected 5 fields, got 4"),
        (GOOD, "", r"fall-01-acc\.csv: no samples"),
        (GOOD.replace("01", "02"), "0,1,0,1,0\n", r"no labelled frames of \['fall-01'\]"),
    ],
)
def test_malformed_row_names_file_and_line(
    tmp_path: Path, features: str, acc: str, message: str
) -> None:
    write_files(tmp_path, features, acc)
    with pytest.raises(ValueError, match=message):
        read_recordings(tmp_path, ["fall-01"], video=False)


def test_missing_files_are_counted(tmp_path: Path) -> None:
    write_files(tmp_path, GOOD, "0,1,0,1,0\n")
    with pytest.raises(FileNotFoundError) as raised:
        read_recordings(tmp_path, ["fall-01", "fall-02", "adl-01"])
    assert str(raised.value).splitlines() == [
        f"data.init_args.root: '{tmp_path}' lacks files of UR Fall. Expected below it:",
        "  accelerometer/: found 1 of 3, missing fall-02-acc.csv, adl-01-acc.csv",
        "  labels_depth_features/: found 1 of 2, missing urfall-cam0-adls.csv",
        "  rgb_cam0/: found 0 of 3, missing fall-01-cam0.mp4, fall-02-cam0.mp4, adl-01-cam0.mp4",
    ]


def test_label_beyond_the_video_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, GOOD.replace(",1,-1", ",3,-1"), "0,1,0,1,0\n")
    (tmp_path / "fall-01-cam0.mp4").touch()
    monkeypatch.setattr(
        "mlecs_lightning.data.urfall.files.read_video",
        lambda path, cache_dir: np.zeros((2, 24, 32, 3), np.uint8),
    )
    with pytest.raises(ValueError, match=r"fall-01: frame 3 is labelled, .* ends after 2"):
        read_recordings(tmp_path, ["fall-01"])
