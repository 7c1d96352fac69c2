"""Digests beside files: what is edited or damaged is told, what never had any is read."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mlecs_lightning.storage.digests import (
    check_folder,
    forget_digest,
    load_safetensors,
    read_checked,
    record_digest,
    seal_folder,
    write_checked,
)
from mlecs_lightning.storage.files import DamagedFileError


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A folder with digests of all kinds."""
    (tmp_path / "below").mkdir()
    save_file({"x": torch.arange(4)}, tmp_path / "below" / "x.safetensors")
    (tmp_path / "README.md").write_text("card")
    (tmp_path / "m.csv").write_text("step\n1\n")
    seal_folder(tmp_path)
    write_checked(tmp_path / "c.yaml", "a: ü\n")
    return tmp_path


def sha256sum(folder: Path) -> bool:
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


def test_they_are_in_the_format_of_sha256sum(sealed: Path) -> None:
    lines = (sealed / "SHA256SUMS").read_text().splitlines()
    assert [line[66:] for line in lines] == ["below/x.safetensors", "c.yaml", "m.csv"]
    assert sha256sum(sealed)
    check_folder(sealed)
    (sealed / "m.csv").write_text("step\n2\n")
    assert not sha256sum(sealed)
    with pytest.raises(DamagedFileError, match=r"m\.csv"):
        check_folder(sealed)
    check_folder(sealed, below="below/")


CHANGES: dict[str, Callable[[Path], object]] = {
    "edited": lambda path: path.write_text("a: 1\n"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_is_not_what_was_written_is_told_with_the_remedy(
    sealed: Path, change: Callable[[Path], object]
) -> None:
    path = sealed / "c.yaml"
    assert read_checked(path) == "a: ü\n".encode()
    change(path)
    with pytest.raises(DamagedFileError, match=r"c\.yaml' is not what was .*delete its line"):
        read_checked(path)
    sums = sealed / "SHA256SUMS"
    sums.write_text("".join(x for x in sums.open() if "c.yaml" not in x))  # as the message says
    assert read_checked(path) == path.read_bytes()
    check_folder(sealed)


def test_writing_again_and_changing_on_purpose(sealed: Path) -> None:
    write_checked(sealed / "c.yaml", "b: 2\n")
    assert read_checked(sealed / "c.yaml") == b"b: 2\n"
    forget_digest(sealed / "m.csv")
    (sealed / "m.csv").write_text("step\n1\n2\n")
    assert read_checked(sealed / "m.csv") == b"step\n1\n2\n"
    record_digest(sealed / "m.csv")
    assert sha256sum(sealed)
    assert [p.name for p in sealed.glob(".*")] == []


def test_a_file_that_was_there_before_digests_is_read(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    assert read_checked(tmp_path / "old.json") == b"{}"
    write_checked(tmp_path / "new.json", "[]")
    assert read_checked(tmp_path / "old.json") == b"{}"
    check_folder(tmp_path)
    check_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        read_checked(tmp_path / "gone")


@pytest.mark.parametrize("line", ["", "abc  c.yaml", f"{'0' * 64}", f"{'g' * 64}  c.yaml", "\xff"])
def test_a_line_that_is_no_digest_is_told(sealed: Path, line: str) -> None:
    (sealed / "SHA256SUMS").write_bytes(f"{'0' * 64}  other\n{line}\n".encode("latin-1"))
    with pytest.raises(DamagedFileError, match=r"SHA256SUMS' is damaged: line 2"):
        read_checked(sealed / "c.yaml")


def test_a_file_that_is_gone_is_missed(sealed: Path) -> None:
    shutil.rmtree(sealed / "below")
    with pytest.raises(DamagedFileError, match=r"x\.safetensors', named in SHA256SUMS, cannot be"):
        check_folder(sealed)


@pytest.mark.parametrize("digests", [True, False])
def test_tensors_are_read_or_refused(sealed: Path, digests: bool) -> None:
    path = sealed / "below" / "x.safetensors"
    if digests:
        seal_folder(path.parent)
    assert load_safetensors(path)["x"].tolist() == [0, 1, 2, 3]
    whole = path.read_bytes()
    for cut in (0, 5, 20, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DamagedFileError, match=r"x\.safetensors"):
            load_safetensors(path)
