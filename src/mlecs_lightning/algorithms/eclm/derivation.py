"""Budgets of devices, and the choice of the most important modules that fit one (ECLM)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from mlecs_lightning.errors import ConfigurationError

__all__ = ["Budget", "Costs", "InfeasibleBudgetError", "derive"]

_INFEASIBLE = 2  # of scipy.optimize.milp


class InfeasibleBudgetError(ConfigurationError):
    """A budget that no sub-model fits; the message gives the smallest feasible one."""


@dataclass(frozen=True)
class Budget:
    """Limits on a device's sub-model; ``None`` sets no limit.

    All but ``modules`` include the parts of the model that cannot be left out.

    Attributes:
        modules: Share of all modules, in (0, 1].
        parameters: Number of parameters, frozen ones included.
        memory_mib: MiB of all parameters, and of the gradients and both AdamW moments of trainable
            ones.
        mflops: Million operations to read one sample's soft prompt; a multiply-add counts as two.
    """

    modules: float | None = None
    parameters: float | None = None
    memory_mib: float | None = None
    mflops: float | None = None

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, limit in self.limits().items():
            if not (limit > 0 and math.isfinite(limit)):
                raise ConfigurationError(f"budget: {name} must be positive, got {limit}")

    def limits(self) -> dict[str, float]:
        """Return the limits that are set."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: float(value) for name, value in values.items() if value is not None}

    def scaled(self, factor: float) -> Budget:
        """Return this budget times a factor."""
        return replace(self, **{name: limit * factor for name, limit in self.limits().items()})


@dataclass(frozen=True)
class Costs:
    """The costs of a model, in the units of a `Budget`.

    Attributes:
        fixed: For each resource, the cost of the parts that cannot be left out.
        modules: For each resource, the cost of each module, (L, K).
        bypass: Whether a layer may have no module.
    """

    fixed: Mapping[str, float]
    modules: Mapping[str, Tensor]
    bypass: bool = False

    def of(self, mask: Tensor) -> dict[str, float]:
        """Return the costs of a sub-model (L, K) bool."""
        return {
            name: self.fixed[name] + float(each[mask].sum()) for name, each in self.modules.items()
        }

    def fit(self, mask: Tensor, budget: Budget) -> bool:
        """Return whether a sub-model fits a budget."""
        costs = self.of(mask)
        return all(costs[n] <= limit * (1 + 1e-9) for n, limit in budget.limits().items())

    def least(self) -> dict[str, float]:
        """Return the smallest feasible budget: one module in each layer, or none."""
        return {
            name: self.fixed[name] + (0.0 if self.bypass else float(each.amin(dim=1).sum()))
            for name, each in self.modules.items()
        }


def derive(
    importance: Tensor, costs: Costs, budget: Budget, *, within: Tensor | None = None
) -> Tensor:
    """Choose the modules with the largest total importance within a budget: a 0/1 knapsack.

    At least one module of each layer is kept unless it has a bypass (our choice: an empty layer
    cannot learn). The bypass costs nothing, so every sub-model has it. Solved exactly by
    `scipy.optimize.milp` (HiGHS).

    Args:
        importance: (L, K), not negative: the mean gate of each module on the device's data.
        costs: The costs of the modules.
        budget: The device's budget.
        within: (L, K) bool, the modules to choose from, such as those that a device holds.

    Returns:
        (L, K) bool.

    Raises:
        InfeasibleBudgetError: If no sub-model fits; names the smallest feasible budget.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # of the extra `eclm`

    layers, modules = importance.shape
    allowed = torch.ones_like(importance, dtype=torch.bool) if within is None else within.bool()
    limits = budget.limits()
    membership = np.kron(np.eye(layers), np.ones(modules))
    least = np.minimum(0 if costs.bypass else 1, allowed.sum(dim=1).numpy())
    constraints = [LinearConstraint(membership, lb=least)]
    if limits:
        table = np.stack([costs.modules[name].double().flatten().numpy() for name in limits])
        left = np.array([limit - costs.fixed[name] for name, limit in limits.items()])
        # In units of the limit, because the solver's tolerance is absolute.
        unit = np.array(list(limits.values()))
        constraints.append(LinearConstraint(table / unit[:, None], ub=left / unit + 1e-9))
    solved = milp(
        -importance.double().flatten().numpy(),
        integrality=1,
        bounds=Bounds(0, allowed.double().flatten().numpy()),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    if solved.status == _INFEASIBLE or solved.x is None:
        needed = {name: costs.least()[name] for name in limits}
        raise InfeasibleBudgetError(
            f"no sub-model fits the budget {_in_words(limits)}; the least feasible one is "
            f"{_in_words(needed)}"
        )
    return torch.from_numpy(solved.x > 0.5).view(layers, modules)


def _in_words(limits: Mapping[str, float]) -> str:
    # Rounded up: what is printed must be feasible.
    return ", ".join(f"{name} {math.ceil(limit * 1e4) / 1e4:g}" for name, limit in limits.items())
