"""Files are whole or not there, on a disk that is really full, too."""

import errno
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mlecs_lightning.storage.files import (
    DamagedFileError,
    FullDiskError,
    load_tensors,
    remove_leftovers,
    replacing_folder,
    save_tensors,
    sha256_of,
    write_atomically,
)

BIG = {"x": torch.zeros(100_000)}  # 400 kB


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def long_folder(target: Path) -> None:
    with replacing_folder(target, over=True) as folder:
        save_file(BIG, folder / "x.safetensors")  # written by Rust, which has errors of its own


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: write_atomically(path, "x" * 400_000),
    "bytes": lambda path: write_atomically(path, bytes(400_000)),
    "tensors": lambda path: save_tensors(path, BIG),
    "many tensors": lambda path: save_tensors(path, list(BIG["x"].clone().view(100, 1000))),
    "folder": long_folder,
}


# Writing ------------------------------------------------------------------------------------------


def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "fällt\n")
    write_atomically(tmp_path / "b", lambda file: file.write(b"\0\xff"))
    save_tensors(tmp_path / "c", {"x": torch.arange(3), "y": [1, "two"]})
    with replacing_folder(tmp_path / "d") as folder:
        (folder / "e").write_text("e")
    assert (tmp_path / "a").read_bytes() == "fällt\n".encode()
    assert (tmp_path / "b").read_bytes() == b"\0\xff"
    assert load_tensors(tmp_path / "c")["x"].tolist() == [0, 1, 2]
    assert names(tmp_path) == ["a", "b", "c", "d", "e"]
    plain = tmp_path / "plain"
    plain.write_text("")
    assert (tmp_path / "a").stat().st_mode == plain.stat().st_mode


def test_whoever_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_text("old")

    def half(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", half)
    with (
        pytest.raises(ZeroDivisionError),
        replacing_folder(tmp_path / "folder", over=True) as folder,
    ):
        (folder / "half").write_text(str(1 / 0))
    assert names(tmp_path) == ["file", "folder", "kept"]
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/kept").read_text() == "old"


def test_a_folder_takes_the_place_of_another_only_if_it_may(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with replacing_folder(tmp_path / "folder", over=True) as folder:
            (folder / text).write_text(text)
    assert names(tmp_path) == ["folder", "two"]
    with pytest.raises(OSError, match="not empty"), replacing_folder(tmp_path / "folder") as folder:
        (folder / "three").write_text("three")
    assert names(tmp_path) == ["folder", "two"]


def test_files_and_their_folders_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but a power cut shows it otherwise."""
    synced: list[str] = []
    fsync = os.fsync

    def spied(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spied)
    write_atomically(tmp_path / "a", "x")
    assert [name[:3] for name in synced] == [".a-", tmp_path.name[:3]]
    synced.clear()
    with replacing_folder(tmp_path / "d") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "e").write_text("x")
    assert {"sub", "e", tmp_path.name} < set(synced)
    assert synced[-1] == tmp_path.name  # after the rename
    synced.clear()
    write_atomically(tmp_path / "b", "x", sync=False)
    assert synced == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys; from mlecs_lightning.storage.files import *\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "def die(file): file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)\n"
        "if sys.argv[2] == 'file': write_atomically(root / 'a', die)\n"
        "with replacing_folder(root / 'b') as folder: os.kill(os.getpid(), 9)\n"
    )
    write_atomically(tmp_path / "a", "old")
    for what in ("file", "folder"):
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path), what])
        assert done.returncode == -9
    assert len(names(tmp_path)) == 3
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


# A full disk --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of 256 kB; only root may mount one."""
    place = tmp_path_factory.mktemp("small")
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
@pytest.mark.parametrize("there", [False, True], ids=["new", "old"])
def test_a_full_disk_is_named_and_leaves_what_was_there(
    small_disk: Path, write: Callable[[Path], object], there: bool
) -> None:
    target = small_disk / "target"
    if there:
        target.write_text("old")
    with pytest.raises(FullDiskError) as caught:
        write(target)
    text = str(caught.value)
    assert caught.value.errno == errno.ENOSPC
    assert repr(str(target)) in text
    assert "No space left on device" in text
    needed, free = (
        int(text.split(before)[1].split(after)[0].replace(",", ""))
        for before, after in (("at least ", " bytes"), ("bytes, ", " are free"))
    )
    assert 0 <= free <= 256 * 1024
    assert needed >= (0 if write is long_folder else 400_000)
    assert names(small_disk) == (["target"] if there else [])
    target.unlink(missing_ok=True)


def test_a_file_that_may_not_be_so_long_is_named(tmp_path: Path) -> None:
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from tests.unit.storage.test_files import WRITERS\n"
        "from mlecs_lightning.storage.files import FullDiskError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "for name, write in WRITERS.items():\n"
        "    try: write(Path(sys.argv[1]) / name)\n"
        "    except FullDiskError as error: print(error)\n"
    )
    run = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for line, name in zip(lines, WRITERS, strict=True):
        assert line.startswith(f"'{tmp_path / name}' cannot be written (File too large)")
    assert names(tmp_path) == []


def test_other_errors_are_told_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no" / "a", "x")
    with pytest.raises(ValueError, match="mine"), replacing_folder(tmp_path / "a"):
        raise ValueError("mine")
    with pytest.raises(OSError, match="Permission") as caught, replacing_folder(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert not isinstance(caught.value, FullDiskError)


# Reading ------------------------------------------------------------------------------------------


def test_a_flipped_bit_of_a_weight_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_tensors(path, {"x": torch.ones(64)})
    whole = path.read_bytes()
    at = whole.index(torch.ones(8).numpy().tobytes()) + 6  # of the exponent
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
    assert not torch.equal(torch.load(path, weights_only=True)["x"], torch.ones(64))  # torch's own
    with pytest.raises(DamagedFileError, match=r"'.*x' is damaged, .*: .*data/0 fails its check"):
        load_tensors(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text\n", b"\x80\x02}q\x00."])
def test_a_file_that_is_none_of_ours_has_a_reason(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"no file of this package: \w"):
        load_tensors(path)


def test_a_reason_is_never_empty(tmp_path: Path) -> None:
    """An archive without torch's records, which says nothing of why it cannot be read."""
    path = tmp_path / "x"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(DamagedFileError, match=r"no file of this package: \S"):
        load_tensors(path)
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "gone")


def test_a_digest_is_that_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(256)) * 9000)
    done = subprocess.run(["sha256sum", tmp_path / "x"], capture_output=True, text=True)
    assert sha256_of(tmp_path / "x") == done.stdout.split()[0]
