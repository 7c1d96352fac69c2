import torch

from mlecs_lightning.federated.state import ClientStore


def test_a_client_without_a_state_has_none() -> None:
    store = ClientStore()
    store.put("a", {"x": torch.ones(1)})
    assert store.get("b") is None
    assert store.get("a") == {"x": torch.ones(1)}


def test_put_replaces_only_the_state_of_that_client() -> None:
    store = ClientStore()
    for name, value in (("a", 1), ("b", 2), ("a", 3)):
        store.put(name, {"x": value})
    assert store.state_dict() == {"a": {"x": 3}, "b": {"x": 2}}


def test_a_state_dict_is_apart_from_the_store() -> None:
    store, other = ClientStore(), ClientStore()
    store.put("a", {"x": 1})
    taken = store.state_dict()
    other.load_state_dict(taken)
    store.put("b", {"x": 2})
    taken["c"] = {"x": 3}
    assert (list(store.state_dict()), list(other.state_dict())) == (["a", "b"], ["a"])
