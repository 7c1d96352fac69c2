"""The knapsack against brute force, and budgets that nothing fits."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mlecs_lightning.algorithms.eclm.derivation import Budget, Costs, InfeasibleBudgetError, derive
from mlecs_lightning.errors import ConfigurationError


def costs_of(modules: Tensor, flops: Tensor | None = None, *, fixed: float = 0.0) -> Costs:
    size = modules.numel()
    return Costs(
        {"modules": 0.0, "parameters": fixed, "memory_mib": 0.0, "mflops": 0.0},
        {
            "modules": torch.full(modules.shape, 1 / size, dtype=torch.float64),
            "parameters": modules.double(),
            "memory_mib": modules.double() * 4 / 2**20,
            "mflops": (modules if flops is None else flops).double(),
        },
    )


def brute_force(importance: Tensor, costs: Costs, budget: Budget, within: Tensor) -> float | None:
    """Return the largest importance of all sub-models that fit, by trying every one."""
    best = None
    least = within.any(dim=1)
    for bits in itertools.product((False, True), repeat=importance.numel()):
        mask = torch.tensor(bits).view(importance.shape)
        if (mask & ~within).any() or not torch.equal(mask.any(dim=1) & least, least):
            continue
        spent = costs.of(mask)
        if any(spent[n] > limit + 1e-9 for n, limit in budget.limits().items()):
            continue
        total = float(importance[mask].sum())
        best = total if best is None else max(best, total)
    return best


@pytest.mark.parametrize("seed", range(25))
def test_no_other_sub_model_is_more_important(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = [(2, 5), (3, 3), (1, 9), (5, 2)][seed % 4]
    importance = torch.rand(shape, generator=generator)
    sizes = torch.randint(1, 20, shape, generator=generator)
    flops = torch.randint(1, 20, shape, generator=generator)
    costs = costs_of(sizes, flops, fixed=7.0)
    share = float(torch.rand((), generator=generator)) * 0.8 + 0.1
    budget = Budget(
        parameters=7 + share * float(sizes.sum()),
        mflops=share * float(flops.sum()),
        modules=[None, 0.6][seed % 2],
    )
    within = torch.rand(shape, generator=generator) > [0.0, 0.2][seed % 3 == 0]
    expected = brute_force(importance, costs, budget, within)
    if expected is None:
        with pytest.raises(InfeasibleBudgetError):
            derive(importance, costs, budget, within=within)
        return
    mask = derive(importance, costs, budget, within=within)
    assert costs.fit(mask, budget)
    assert not (mask & ~within).any()
    assert float(importance[mask].sum()) == pytest.approx(expected, abs=1e-6)


def test_without_a_budget_everything_is_chosen() -> None:
    assert derive(torch.rand(2, 3), costs_of(torch.ones(2, 3)), Budget()).all()


def test_a_layer_that_matters_little_keeps_one_module() -> None:
    importance = torch.tensor([[9.0, 8.0, 7.0], [0.1, 0.3, 0.2]])
    mask = derive(importance, costs_of(torch.ones(2, 3)), Budget(modules=0.5))
    assert mask.tolist() == [[True, True, False], [False, True, False]]


def test_a_budget_that_is_met_exactly_is_met() -> None:
    """A third of three modules, in floating point."""
    costs = costs_of(torch.full((1, 3), 0.1))
    assert derive(torch.tensor([[1.0, 2.0, 3.0]]), costs, Budget(modules=1 / 3)).tolist() == [
        [False, False, True]
    ]
    assert derive(torch.ones(1, 3), costs, Budget(parameters=0.1 + 0.1 + 0.1)).all()


def test_an_infeasible_budget_names_the_least_feasible_one() -> None:
    costs = costs_of(torch.tensor([[5, 3], [4, 8]]), fixed=100.0)
    with pytest.raises(InfeasibleBudgetError) as caught:
        derive(torch.ones(2, 2), costs, Budget(parameters=106.0, modules=0.3))
    assert str(caught.value) == (
        "no sub-model fits the budget modules 0.3, parameters 106; the least feasible one is "
        "modules 0.5, parameters 107"
    )
    assert derive(torch.ones(2, 2), costs, Budget(parameters=107.0, modules=0.5)).tolist() == [
        [False, True],
        [True, False],
    ]


def test_a_budget_has_to_be_positive_and_can_be_scaled() -> None:
    with pytest.raises(ConfigurationError, match="budget: mflops must be positive, got 0"):
        Budget(mflops=0.0)
    assert Budget(modules=0.5, mflops=3.0).scaled(0.5) == Budget(modules=0.25, mflops=1.5)
    assert Budget().limits() == {}


def test_with_a_bypass_a_layer_may_be_empty() -> None:
    importance = torch.tensor([[0.5, 0.4], [0.1, 0.2]])
    costs = costs_of(torch.ones(2, 2, dtype=torch.int64))
    budget = Budget(modules=0.5)
    assert derive(importance, costs, budget).tolist() == [[True, False], [False, True]]
    free = replace(costs, bypass=True)
    assert derive(importance, free, budget).tolist() == [[True, True], [False, False]]
    assert free.least()["modules"] == 0.0
    assert not derive(importance, free, Budget(modules=0.1)).any()
