"""One optimiser for all clients takes the steps that each client's own takes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from mlecs_lightning.cohorts.optimizer import JointOptimizer
from mlecs_lightning.rounds.optimization import Lent

KINDS: dict[type[Optimizer], dict[str, Any]] = {
    torch.optim.Adadelta: {},
    torch.optim.Adagrad: {"lr_decay": 0.1},
    torch.optim.Adam: {"amsgrad": True},
    torch.optim.AdamW: {"fused": True, "weight_decay": 0.1},
    torch.optim.Adamax: {},
    torch.optim.NAdam: {},
    torch.optim.RAdam: {},
    torch.optim.RMSprop: {"momentum": 0.9, "centered": True},
    torch.optim.SGD: {"momentum": 0.9, "nesterov": True},
}
SHAPES = ((3, 2), (4,), ())
CLIENTS = 3


def gradients(step: int) -> list[Tensor]:
    """Return the gradients (CLIENTS, ...) of a step; none of the second parameter in the first."""
    drawn = torch.Generator().manual_seed(step)
    each = [torch.randn(CLIENTS, *shape, generator=drawn) for shape in SHAPES]
    return each if step else [each[0], torch.empty(0), each[2]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("story", ["alike", "one is ahead", "one is late", "rates differ"])
def test_steps_are_those_of_each_client_alone(kind: type[Optimizer], story: str) -> None:
    options = {"lr": 0.1, **KINDS[kind]}
    own = [[torch.ones(shape, requires_grad=True) for shape in SHAPES] for _ in range(CLIENTS)]
    alone = [kind(parameters, **options) for parameters in own]
    if story == "rates differ":
        alone[1].param_groups[0]["lr"] = 0.01

    def step(client: int, number: int) -> None:
        for parameter, each in zip(own[client], gradients(number), strict=True):
            parameter.grad = each[client].clone() if each.numel() else None
        alone[client].step()

    if story == "one is ahead":
        step(2, 7)
    stacked = [
        torch.stack([each[n].detach() for each in own]).requires_grad_() for n in range(len(SHAPES))
    ]
    rows = [each.detach().unbind() for each in stacked]
    shared = [torch.ones(shape, requires_grad=True) for shape in SHAPES]
    lent = {
        client: Lent(
            {
                shared[n]: {
                    k: v.clone() if isinstance(v, Tensor) else v for k, v in each.state[p].items()
                }
                for n, p in enumerate(own[client])
                if p in each.state
            },
            [{k: v for k, v in each.param_groups[0].items() if k != "params"}],
            {},
            0,
        )
        for client, each in enumerate(alone)
    }
    joint = JointOptimizer(kind(shared, **options), shared, stacked, rows, lent)
    for number in range(4):
        places = [0, 2] if story == "one is late" and number == 2 else [0, 1, 2]
        found = [each if each.numel() else None for each in gradients(number)]
        for client in places:
            step(client, number)
        if len(places) == CLIENTS:
            for parameter, each in zip(stacked, found, strict=True):
                parameter.grad = each
            joint.step()
        else:
            joint.step_of(places, [None if each is None else each[places] for each in found])
    joint.hand_back(lent)
    for client, optimizer in enumerate(alone):
        for n, parameter in enumerate(own[client]):
            torch.testing.assert_close(stacked[n][client], parameter, rtol=1e-6, atol=1e-6)
            theirs = lent[client].moments[shared[n]]
            assert theirs.keys() == optimizer.state[parameter].keys()
            for key, value in optimizer.state[parameter].items():
                torch.testing.assert_close(theirs[key], value, rtol=1e-6, atol=1e-6)


def test_an_optimizer_that_mixes_parameters_is_none_for_all() -> None:
    parameters = [torch.ones(2, 2, requires_grad=True)]
    assert not JointOptimizer.allows(torch.optim.LBFGS(parameters))
    assert not JointOptimizer.allows(torch.optim.Adafactor(parameters))
    groups = [{"params": parameters}, {"params": [torch.ones(1, requires_grad=True)]}]
    assert not JointOptimizer.allows(torch.optim.SGD(groups, lr=0.1))
