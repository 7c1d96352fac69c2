import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlecs_lightning.data.decoding.shapes import Declared, DecodeError
from mlecs_lightning.data.manifest import store as manifest_store
from mlecs_lightning.data.manifest.store import DecodeCache, OutsideRootError, read_below
from mlecs_lightning.storage.cache import seal

VECTOR = Declared("vector", [2])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of data beside a secret, with links out of it and within it."""
    (tmp_path / "secret.csv").write_text("1,2")
    root = tmp_path / "data"
    (root / "a").mkdir(parents=True)
    (root / "a" / "x.csv").write_text("3,4")
    (root / "a..b.csv").write_text("5,6")
    (root / "out.csv").symlink_to(tmp_path / "secret.csv")
    (root / "up").symlink_to(tmp_path)
    (root / "in.csv").symlink_to(root / "a" / "x.csv")
    (root / "loop.csv").symlink_to(root / "loop.csv")
    os.mkfifo(root / "pipe.csv")
    return root


@pytest.mark.parametrize(
    ("written", "content"),
    [("a/x.csv", b"3,4"), ("./a/x.csv", b"3,4"), ("in.csv", b"3,4"), ("a..b.csv", b"5,6")],
)
def test_files_below_the_root_are_read(root: Path, written: str, content: bytes) -> None:
    assert read_below(root, written) == content


@pytest.mark.parametrize(
    "written",
    [
        *("../secret.csv", "a/../../secret.csv", "a/../a/x.csv", "..", "a\\..\\..\\secret.csv"),
        *("/etc/passwd", "//etc/passwd", "C:\\secret.csv", "\\\\host\\share\\x.csv"),
        *("out.csv", "up/secret.csv", "up/data/../secret.csv", "TMP/secret.csv"),
    ],
)
def test_no_path_leads_out_of_the_root(root: Path, written: str) -> None:
    with pytest.raises(
        OutsideRootError, match=r"not a relative path|contains '\.\.'|symbolic link"
    ):
        read_below(root, written.replace("TMP", str(root.parent)))


@pytest.mark.parametrize(
    ("written", "link"),
    [("out.csv", "out.csv"), ("up/secret.csv", "up"), ("in/out.csv", "in/out.csv")],
)
def test_a_link_that_leads_out_is_followed_into_allowed_folders_only(
    root: Path, written: str, link: str
) -> None:
    (root / "in").symlink_to(root / "a")
    (root / "a" / "out.csv").symlink_to(root.parent / "secret.csv")
    with pytest.raises(
        OutsideRootError,
        match=rf"link '{root}/{link}' -> .*; .* to data.init_args.allowed_roots",
    ):
        read_below(root, written)
    elsewhere = root.parent / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(OutsideRootError, match="symbolic link"):
        read_below(root, written, allowed=[elsewhere])
    (root.parent / "named").symlink_to(root.parent)  # the folder may be named by a link itself
    for folder in (root.parent, root.parent / "named"):
        assert read_below(root, written, allowed=[elsewhere, folder]) == b"1,2"
    with pytest.raises(OutsideRootError, match="contains"):
        read_below(root, "../secret.csv", allowed=[root.parent])


def test_a_link_is_followed_back_into_the_root(root: Path) -> None:
    assert read_below(root, "up/data/a/x.csv") == b"3,4"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("none.csv", "there is no such file"),
        ("a", "there is no such file"),
        ("", "there is no such file"),
        ("a/x.csv/y.csv", "there is no such file"),
        ("pipe.csv", "there is no such file"),
        ("loop.csv", "there is no such file|cannot be read: Symlink loop"),
        ("x\0.csv", "is not a path: .*embedded null"),
        ("x" * 5000, "cannot be read: .*too long"),
    ],
)
def test_what_is_no_file_is_refused(root: Path, written: str, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        read_below(root, written)


@pytest.mark.parametrize(
    ("there", "written", "said"),
    [
        ("Ku\u0308che.csv", "K\u00fcche.csv", "decomposed letters .* there and composed .* here"),
        ("K\u00fcche.csv", "Ku\u0308che.csv", "composed letters .* there and decomposed .* here"),
        ("IMG_1.CSV", "IMG_1.csv", "'IMG_1.CSV' differs from it in case alone"),
        ("Tag/x.csv", "tag/x.csv", "'Tag' differs from it in case alone"),
    ],
)
def test_a_file_whose_name_looks_the_same_is_named(
    root: Path, there: str, written: str, said: str
) -> None:
    (root / there).parent.mkdir(exist_ok=True)
    (root / there).write_text("1,2")
    with pytest.raises(DecodeError, match=f"there is no such file; .*{said}"):
        read_below(root, written)


def test_a_file_that_is_too_large_is_not_read(root: Path) -> None:
    with (root / "sparse.npy").open("wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(DecodeError, match="is larger than 256 MiB"):
        read_below(root, "sparse.npy")


# The cache ----------------------------------------------------------------------------------------


def test_a_file_is_decoded_once_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = DecodeCache(tmp_path).decode(b"7,8", ".csv", VECTOR)
    monkeypatch.delattr(manifest_store, "decode")  # whoever decodes now fails
    again = DecodeCache(tmp_path).decode(b"7,8", ".csv", VECTOR)
    np.testing.assert_array_equal(again.values, first.values)
    assert again[1:] == first[1:] == ((1, 2), 0, ())
    for data, suffix, declared in (
        (b"7,9", ".csv", VECTOR),
        (b"7,8", ".npy", VECTOR),
        (b"7,8", ".csv", Declared("series", [2, 2])),
    ):
        with pytest.raises(NameError):
            DecodeCache(tmp_path).decode(data, suffix, declared)
    monkeypatch.setattr(manifest_store, "VERSION", manifest_store.VERSION + 1)
    with pytest.raises(NameError):
        DecodeCache(tmp_path).decode(b"7,8", ".csv", VECTOR)


def test_each_declaration_has_a_cache_of_its_own(tmp_path: Path) -> None:
    cache, data = DecodeCache(tmp_path), b"1\n3\n5\n"
    by_fit = {
        fit: cache.decode(data, ".csv", Declared("series", [1, 1], fit=fit)).values.item()
        for fit in ("last", "resample")
    }
    assert by_fit == {"last": 5, "resample": 3}
    many = "\n".join(map(str, range(64))).encode()
    features = {"kind": "spectrogram", "window": 0.5, "hop": 0.25}
    shapes = set()
    for changed in ({}, {"window": 0.25}, {"hop": 0.125}, {"kind": "log_mel", "bands": 8}):
        form = {"kind": "series", "shape": [1, 64], "rate": 64, "features": features | changed}
        shapes.add(cache.decode(many, ".csv", Declared.from_values(form, key="m")).values.shape)
    assert shapes == {(17, 3), (9, 4), (17, 5), (8, 3)}


def test_changes_of_channels_are_kept_with_the_values(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGBA", (2, 2), (9, 9, 9, 9)).save(file, "PNG")
    declared = Declared("image", [1, 2, 2])
    cache = DecodeCache(tmp_path)
    once, again = (cache.decode(file.getvalue(), ".png", declared) for _ in range(2))
    assert once.changes == again.changes
    assert once.changes == ("with alpha were laid on white", "in colour were made grey")


def flipped(whole: bytes, part: bytes) -> bytes:
    content = bytearray(whole)
    content[whole.index(part)] ^= 1
    return bytes(content)


def of_another_shape(_: bytes) -> bytes:
    content = io.BytesIO()
    changes = np.array((), str)
    np.savez(content, values=np.zeros(3, np.float32), facts=np.array([0, 3]), changes=changes)
    return content.getvalue()


DAMAGES = {
    "empty": lambda whole: b"",
    "no zip": lambda whole: b"no zip",
    "truncated": lambda whole: whole[:-30],
    "a value flipped": lambda whole: flipped(whole, np.float32(7).tobytes()),
    "a fact flipped": lambda whole: flipped(whole, np.array([0, 1, 2]).tobytes()),
    "of another shape": of_another_shape,
    "of an earlier version, without a checksum": lambda whole: whole[:-32],
    "of another file": lambda whole: seal(whole[:-32], key="of another file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_written_anew(tmp_path: Path, damage: str) -> None:
    cache = DecodeCache(tmp_path)
    first = cache.decode(b"7,8", ".csv", VECTOR)
    (kept,) = tmp_path.rglob("*.npz")
    whole = kept.read_bytes()
    kept.write_bytes(DAMAGES[damage](whole))
    assert kept.read_bytes() != whole
    again = cache.decode(b"7,8", ".csv", VECTOR)
    assert (again.values.tolist(), *again[1:]) == ([7, 8], *first[1:])
    assert kept.read_bytes() == whole
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]


def test_what_cannot_be_decoded_is_not_kept(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(DecodeError, match="line 2, column 2: 'y' is not a number; correct it"):
            DecodeCache(tmp_path).decode(b"7,1\n1,y", ".csv", VECTOR)
    assert list(tmp_path.rglob("*.npz")) == []


def test_without_a_place_for_the_cache_files_are_decoded_each_time(tmp_path: Path) -> None:
    (tmp_path / "manifest").write_text("a file where the folder should be")
    assert DecodeCache(tmp_path).decode(b"7,8", ".csv", VECTOR).values.tolist() == [7, 8]
