"""Features on disk: what is computed once, what is not, and what a broken file does."""

import random
import sqlite3
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mlecs_lightning.nn.features import cached_features, fingerprint

ROWS = torch.arange(12.0).view(4, 3)


class Doubling:
    """An encoder that remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.seen += x[:, 0].tolist()
        return 2 * x + 1


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLECS_CACHE", str(tmp_path))
    return tmp_path / "features"


def ask(rows: Tensor, *, identity: str = "a", limit: int = 10**9) -> list[float]:
    """Check the features of rows; return the first number of each that was computed."""
    encoder = Doubling()
    features = cached_features(encoder, rows, identity=identity, limit=limit)
    assert torch.equal(features, (2 * rows + 1).float())
    return encoder.seen


def test_row_is_computed_once_whatever_batch_it_comes_in() -> None:
    assert ask(ROWS[:2]) == [0.0, 3.0]
    assert ask(ROWS[[3, 1, 0, 3]]) == [9.0], "known rows are read, and a new one counts once"
    assert ask(ROWS) == [6.0]
    assert ask(ROWS.flip(0)) == []


def test_more_rows_than_one_query_takes_come_back_in_order() -> None:
    many = torch.randn(1200, 3, generator=torch.Generator().manual_seed(0))
    assert len(ask(many)) == 1200
    assert ask(many.flip(0)) == []


def test_another_encoder_knows_nothing_of_the_first(folder: Path) -> None:
    ask(ROWS, identity="a")
    assert len(ask(ROWS, identity="b")) == 4
    assert len(list(folder.glob("*.sqlite"))) == 2


def test_row_is_known_by_every_bit_its_shape_and_its_type() -> None:
    row = torch.tensor([1.0, 0.0])
    others = [
        torch.tensor([1.0, 1e-45]),
        row.view(2, 1),
        row.double(),
        row.to(torch.bfloat16),
        row.to(torch.int32),
    ]
    assert len({fingerprint([x]) for x in [row, *others]}) == 6
    assert fingerprint([row.clone()]) == fingerprint([torch.stack([row, row], 1)[:, 0]])


def test_full_file_takes_no_more_and_serves_what_it_has(folder: Path) -> None:
    ask(ROWS[:2], limit=1)
    size = next(folder.iterdir()).stat().st_size
    assert ask(ROWS, limit=1) == [6.0, 9.0]
    assert ask(ROWS, limit=1) == [6.0, 9.0]
    assert next(folder.iterdir()).stat().st_size == size


def test_broken_file_is_begun_anew_and_says_so(folder: Path) -> None:
    ask(ROWS)
    file = next(folder.iterdir())
    file.write_bytes(b"no database at all" * 99)
    with pytest.warns(UserWarning, match=r"cannot read the cached features") as caught:
        assert len(ask(ROWS)) == 4
    assert [str(file) in str(each.message) for each in caught] == [True]
    assert ask(ROWS) == []


ROW_DAMAGES = {
    "a bit flipped": "CAST(substr(value, 1, 5) || x'a5' || substr(value, 7) AS BLOB)",
    "truncated": "substr(value, 1, 30)",
    "of another shape": "CAST(value || value AS BLOB)",
    "of an earlier version, without a checksum": "substr(value, 1, 12)",
    "of another row": "(SELECT value FROM features ORDER BY rowid LIMIT 1)",
    "no bytes": "'text'",
    "nothing": "NULL",
}


@pytest.mark.parametrize("damage", ROW_DAMAGES)
def test_a_damaged_row_is_computed_again_and_replaced(folder: Path, damage: str) -> None:
    ask(ROWS[:1])
    ask(ROWS)
    [file] = folder.iterdir()
    with sqlite3.connect(file) as opened:
        where = "WHERE rowid IN (SELECT rowid FROM features ORDER BY rowid LIMIT -1 OFFSET 1)"
        opened.execute(f"UPDATE features SET value = {ROW_DAMAGES[damage]} {where}")
    assert ask(ROWS) == [3.0, 6.0, 9.0]
    assert ask(ROWS) == []


@pytest.mark.filterwarnings("ignore:cannot (read|write) the cached features")
def test_no_flipped_byte_of_the_file_makes_a_number_wrong(folder: Path) -> None:
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    ask(rows)
    [file] = folder.iterdir()
    whole, drawn = file.read_bytes(), random.Random(0)
    computed = 0
    for place in [*range(0, 100, 4), *drawn.sample(range(len(whole)), 45)]:
        content = bytearray(whole)
        content[place] ^= 1 << drawn.randrange(8)
        file.write_bytes(content)
        computed += len(ask(rows)) > 0
        ask(rows)
        assert ask(rows) == [], f"byte {place} is never mended"
        file.write_bytes(whole)
    assert computed > 10


def test_file_that_another_process_has_just_begun_is_no_fault(folder: Path) -> None:
    ask(ROWS)
    next(folder.iterdir()).write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(ask(ROWS)) == 4
        assert ask(ROWS) == []


def test_folder_that_cannot_be_written_costs_time_and_says_so(folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot write the cached features"):
        assert len(ask(ROWS)) == 4


def test_many_writers_lose_nothing(folder: Path) -> None:
    rows = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, [rows[i : i + 12] for i in range(0, 60, 4)]))
    assert ask(rows) == []
    with sqlite3.connect(next(folder.iterdir())) as file:
        assert file.execute("SELECT COUNT(*) FROM features").fetchone() == (64,)
