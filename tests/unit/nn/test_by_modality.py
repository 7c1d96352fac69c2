import copy

import pytest
import torch
from torch import nn

from mlecs_lightning.nn.by_modality import ByModality

NAMES = ["camera", "training", "type", "keys", "forward", "_modules", "no"]


def test_all_that_a_module_has_itself_can_be_a_name() -> None:
    modules = ByModality({name: nn.Linear(n, 1) for n, name in enumerate(NAMES, start=1)})
    assert (list(modules), list(modules.keys()), len(modules)) == (NAMES, NAMES, len(NAMES))
    assert [module.in_features for _, module in modules.items()] == [1, 2, 3, 4, 5, 6, 7]
    assert all(modules[name] is module for name, module in modules.items())
    assert "type" in modules
    assert "hall" not in modules
    modules.eval().train()
    assert modules.training
    other = copy.deepcopy(modules)
    for module in other.values():
        nn.init.zeros_(module.weight)
    other.load_state_dict(modules.state_dict())
    assert torch.equal(other["training"].weight, modules["training"].weight)
    assert modules.get_submodule("~training") is modules["training"]


@pytest.mark.parametrize("names", [["camera"], ["acc", "rgb"], ["training_", "Type"]])
def test_states_of_other_names_are_those_of_a_plain_dict(names: list[str]) -> None:
    parts = {name: nn.Linear(1, 1) for name in names}
    assert list(ByModality(parts).state_dict()) == list(nn.ModuleDict(parts).state_dict())
