"""The selector and the frozen path through which a device measures its data."""

import pytest
import torch
from torch import nn

from mlecs_lightning.algorithms.eclm.selector import GatePath, ModuleSelector
from mlecs_lightning.nn.connector import Connector
from mlecs_lightning.settings import ConnectorSettings

SETTINGS = ConnectorSettings(width=6, prompt_length=2, dropout=0.0)


@pytest.fixture
def parts() -> tuple[nn.ModuleDict, Connector, ModuleSelector]:
    torch.manual_seed(0)
    extractors = nn.ModuleDict({"b": nn.Linear(3, 4)})
    connector = Connector({"b": 4}, 8, settings=SETTINGS, slots=("a", "b", "c"))
    return extractors, connector, ModuleSelector(6, (2, 5))


def test_gates_are_a_softmax_over_the_modules_of_each_layer(
    parts: tuple[nn.ModuleDict, Connector, ModuleSelector],
) -> None:
    path = GatePath(*parts)
    x, present = torch.randn(4, 3), torch.ones(4, 1).bool()
    gates = path({"b": x}, present)
    assert gates.shape == (4, 2, 5)
    torch.testing.assert_close(gates.sum(-1), torch.ones(4, 2))
    fused = parts[1]({"b": parts[0]["b"](x)}, present).fused
    torch.testing.assert_close(gates, parts[2](fused).softmax(-1))
    assert not torch.equal(gates, path({"b": x}, ~present))


def test_what_is_tuned_later_does_not_change_the_gates(
    parts: tuple[nn.ModuleDict, Connector, ModuleSelector],
) -> None:
    extractors, connector, _ = parts
    path, x = GatePath(*parts), {"b": torch.randn(4, 3)}
    before = path(x, torch.ones(4, 1).bool())
    with torch.no_grad():
        for p in (*extractors.parameters(), *connector.parameters()):
            p.add_(1.0)
    assert torch.equal(path(x, torch.ones(4, 1).bool()), before)
    assert not any(p.requires_grad for p in path.parameters())


def test_frozen_encoders_are_shared(
    parts: tuple[nn.ModuleDict, Connector, ModuleSelector],
) -> None:
    extractors, connector, selector = parts
    extractors["b"].weight.requires_grad_(False)  # type: ignore[union-attr]
    path = GatePath(extractors, connector, selector)
    assert path.extractors["b"].weight is extractors["b"].weight  # type: ignore[index]
    assert path.extractors["b"].bias is not extractors["b"].bias  # type: ignore[index]
