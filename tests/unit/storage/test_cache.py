"""Entries of a cache: what is not exactly what was written under a key is missing."""

from pathlib import Path

import pytest

from mlecs_lightning.storage.cache import read_entry, seal, unseal, write_entry


@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256))])
def test_each_bit_of_an_entry_counts(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "folder" / "entry"
    write_entry(path, content, key="a")
    whole = path.read_bytes()
    assert read_entry(path, key="a") == content
    for place in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        assert read_entry(path, key="a") is None
    for length in range(len(whole)):
        assert unseal(whole[:length], key="a") is None
    assert unseal(whole + b"x", key="a") is None


@pytest.mark.parametrize("other", ["", "b", "A", "a ", "aa"])
def test_an_entry_of_another_key_is_missing(other: str) -> None:
    assert unseal(seal(b"value", key="a"), key=other) is None


@pytest.mark.parametrize("value", [None, 7, 1.5, "text", b""])
def test_what_is_no_entry_is_missing(value: object) -> None:
    assert unseal(value, key="a") is None


def test_without_a_place_nothing_is_kept_and_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    write_entry(tmp_path / "file" / "entry", b"x", key="a")
    assert read_entry(tmp_path / "file" / "entry", key="a") is None
    assert read_entry(tmp_path, key="a") is None
