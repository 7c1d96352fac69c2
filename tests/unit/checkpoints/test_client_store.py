from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mlecs_lightning.checkpoints.client_store import ClientStore, DiskStore, MemoryStore

Make = Callable[[Path], ClientStore]
STORES = pytest.mark.parametrize("make", [lambda path: MemoryStore(), MemoryStore, DiskStore])


@STORES
def test_a_client_without_a_state_has_none(make: Make, tmp_path: Path) -> None:
    store = make(tmp_path)
    store.put("a", {"x": torch.ones(1)}, round=0)
    assert store.get("b") is None
    assert store.get("a") == {"x": torch.ones(1)}


@STORES
def test_put_replaces_only_the_state_of_that_client(make: Make, tmp_path: Path) -> None:
    store = make(tmp_path)
    for round, (name, value) in enumerate((("a", 1), ("b", 2), ("a", 3))):
        store.put(name, {"x": value}, round=round)
    assert (store.get("a"), store.get("b")) == ({"x": 3}, {"x": 2})


@STORES
def test_messages_are_those_of_the_round(make: Make, tmp_path: Path) -> None:
    store = make(tmp_path)
    store.put("a", {}, round=0)
    store.put_message("a", b"first")
    store.put_message("a", b"\0\xff")
    assert store.message("a") == b"\0\xff"
    store.drop_messages()
    with pytest.raises((KeyError, FileNotFoundError)):
        store.message("a")


def test_messages_are_in_files_where_there_is_a_folder(tmp_path: Path) -> None:
    for store in (MemoryStore(tmp_path / "made"), DiskStore(tmp_path / "made")):
        store.put_message("a", b"long")
        assert (tmp_path / "made/a.message").read_bytes() == b"long"
        store.drop_messages()
        assert list((tmp_path / "made").iterdir()) == []
        store.drop_messages()  # of a round that nobody took part in


def test_a_state_dict_is_apart_from_the_store() -> None:
    store = MemoryStore()
    store.put("a", {"x": 1}, round=0)
    taken = store.state_dict()
    store.put("b", {"x": 2}, round=0)
    taken["c"] = {"x": 3}
    assert list(store.state_dict()) == ["a", "b"]


def test_files_of_earlier_rounds_stay_until_no_checkpoint_needs_them(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    for round, clients in enumerate((["a", "b"], ["a"], ["a"], ["b"])):
        for client in clients:
            store.put(client, {"x": round}, round=round)
    assert store.state_dict() == {"a": "a@0002.pt", "b": "b@0003.pt"}
    store.prune([1, 3])  # round 1 needs what b did in round 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("a@0001.pt", "a@0002.pt", "b@0000.pt", "b@0003.pt")
    ]
    store.prune([3])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a@0002.pt", "b@0003.pt"]
    assert (store.get("a"), store.get("b")) == ({"x": 2}, {"x": 3})


def test_a_state_from_before_round_0_stays_as_long_as_it_is_needed(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    store.put("a", {"x": -1}, round=-1)
    store.put("b", {"x": -1}, round=-1)
    store.put("a", {"x": 0}, round=0)
    store.prune([0])  # b has not taken part yet
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a@0000.pt", "b@-001.pt"]
    assert store.get("b") == {"x": -1}


def test_a_client_whose_name_holds_a_dot_keeps_its_file(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    for client in ("a", "a.b", "a.c"):
        store.put(client, {"x": client}, round=0)
    store.prune([0])
    assert [store.get(client) for client in ("a", "a.b", "a.c")] == [
        *({"x": "a"}, {"x": "a.b"}, {"x": "a.c"})
    ]
