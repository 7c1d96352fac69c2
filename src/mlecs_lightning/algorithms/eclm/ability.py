"""The second offline stage of ECLM (Nebula): each sub-task learns to need few modules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mlecs_lightning.algorithms.eclm.models import CloudParts
from mlecs_lightning.algorithms.eclm.offline import OfflineStage
from mlecs_lightning.data.sampling import sequential_loader
from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.errors import ConfigurationError, FaultList
from mlecs_lightning.modules import Losses, ServerModule
from mlecs_lightning.rounds import ServerLearner
from mlecs_lightning.types import Batch

__all__ = [
    "AbilityStage",
    "AbilityTraining",
    "assign_modules",
    "gate_divergence",
    "gate_labels",
    "load_matrix",
    "subtasks_of",
]

Subtasks = Literal["classes", "domains", "class_mixes"]

_KEY = "algorithm.init_args.ability"
_GAP = 1e-3
"""Relative gap at which the search for a mask ends: with even loads many masks are as good, and to
prove the best of them takes minutes (our choice)."""
_ROUNDING = 1e-6  # of loads, which are means of float32


@dataclass(frozen=True)
class AbilityTraining:
    """Ability-enhancing training, the second offline stage, on the server's public data.

    Each sub-task is given a few modules of each layer, and the selector is trained to choose these
    for its samples. A device whose data are of few sub-tasks then needs few modules.

    Attributes:
        steps: Optimiser steps of the stage; those of the first stage are ``steps.warmup``.
        weight: lambda, the weight of the divergence between gates and gate labels; the default was
            the best of four on validation data (docs/results.md).
        subtasks: What a device is expected to hold together: each class or each domain of the
            public samples is a sub-task; or, with ``class_mixes``, each group of domains whose
            classes are alike, by k-means of their label histograms (our choice: the server knows
            nothing of the devices' data before they report). Samples without a target have no known
            class, hence no gate label, nor has a domain without any target under ``class_mixes``.
        mixes: Maximum number of these groups.
        task_modules: kappa_2, the maximum number of modules of a sub-task in each layer; a quarter
            of the modules by default (our choice). The number of modules sets no limit.
        module_load: kappa_1, the maximum load of a module, as a multiple of the mean load T / K of
            T sub-tasks on K modules. ``None`` sets no limit.
    """

    steps: int = 100
    weight: float = 0.3
    subtasks: Subtasks = "classes"
    mixes: int = 4
    task_modules: int | None = None
    module_load: float | None = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        faults = FaultList()
        if self.steps < 1:
            faults.append(f"{_KEY}.steps must be at least 1, got {self.steps}")
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            faults.append(f"{_KEY}.weight must be at least 0, got {self.weight}")
        if self.mixes < (least := 2 if self.subtasks == "class_mixes" else 1):
            faults.append(f"{_KEY}.mixes must be at least {least}, got {self.mixes}")
        if self.task_modules is not None and self.task_modules < 1:
            faults.append(f"{_KEY}.task_modules must be at least 1, got {self.task_modules}")
        if self.module_load is not None and not self.module_load > 0:
            faults.append(f"{_KEY}.module_load must be positive, got {self.module_load}")
        faults.raise_any()

    def prepare(
        self, server: ServerLearner, table: SampleTable, offline: OfflineStage
    ) -> AbilityStage:
        """Return the stage: the loads of the trained selector, and the gate labels they give.

        Args:
            server: The cloud after the first stage.
            table: The public training samples.
            offline: The first stage, whose gates the second one uses.

        Raises:
            ConfigurationError: If fewer than two sub-tasks have samples, or no mask satisfies the
                limits.
        """
        tasks = subtasks_of(table, self.subtasks, mixes=self.mixes)
        if int(tasks.max()) == 0:
            raise ConfigurationError(
                f"{_KEY}.subtasks: {self.subtasks} are one sub-task in these public samples, and "
                f"nothing is to be told apart; choose another of {list(get_args(Subtasks))}, or "
                f"leave {_KEY} out (a Manifest has classes with data.init_args.labels)"
            )
        with torch.random.fork_rng(devices=[]):  # a loader draws, and what follows would shift
            gates = torch.cat(server.map(sequential_loader(table, 256), CloudParts.measure)).cpu()
        labels = self.labels_of(gates, tasks)
        by_id = {i: int(t) for i, t in zip(table.ids, tasks.tolist(), strict=True) if t >= 0}
        return AbilityStage(offline, self.weight, labels, by_id)

    def labels_of(self, gates: Tensor, tasks: Tensor) -> Tensor:
        """Return the gate labels (L, T, K) for gates (N, L, K) of samples with sub-tasks (N,)."""
        loads = load_matrix(gates, tasks)
        count, modules = loads.shape[1:]
        few = max(1, modules // 4) if self.task_modules is None else self.task_modules
        ceiling = math.inf if self.module_load is None else self.module_load * count / modules
        if few >= modules and math.isinf(ceiling):
            return gate_labels(loads, torch.ones_like(loads, dtype=torch.bool))
        return gate_labels(loads, assign_modules(loads, module_load=ceiling, task_modules=few))


@dataclass(frozen=True)
class AbilityStage:
    """L_LM of the gated model, and the divergence of the gates from those of the sub-task.

    Attributes:
        offline: The first stage, whose gated pass this one repeats.
        weight: lambda.
        labels: (L, T, K) gate label of each sub-task.
        tasks: Sub-task of each sample, by id; a sample without one has no gate label.
    """

    offline: OfflineStage
    weight: float
    labels: Tensor
    tasks: Mapping[str, int]

    def loss(self, server: ServerModule, batch: Batch) -> Losses:
        """L_LM(gated model) + lambda * KL(gate label || gates)."""
        gated = self.offline.forward(server, batch)
        tasks = torch.tensor([self.tasks.get(i, -1) for i in batch.ids])
        labels = self.labels.transpose(0, 1)[tasks.clamp(min=0)].to(gated.logits)
        known = (tasks >= 0).to(gated.logits.device)
        divergence = gate_divergence(
            *map(server.gather, (gated.logits.log_softmax(dim=-1), labels, known))
        )
        return {"loss": gated.lm + self.weight * divergence, "lm": gated.lm, "gates": divergence}


def subtasks_of(table: SampleTable, kind: Subtasks, *, mixes: int = 4) -> Tensor:
    """Return the sub-task of each sample, (N,) int64 from 0; -1 for none.

    Args:
        table: Public samples.
        kind: What makes a sub-task.
        mixes: See `AbilityTraining`.

    Raises:
        ConfigurationError: If no sample has one.
    """
    known = table.labelled() & (table.labels >= 0)
    if kind == "classes":
        named = table.labels.masked_fill(~known, -1)
    else:
        names = sorted(set(table.domains) - {""})
        number = {name: n for n, name in enumerate(names)}
        named = torch.tensor([number.get(name, -1) for name in table.domains])
    if kind == "class_mixes":
        counts = torch.zeros(len(number) + 1, int(table.labels.clamp(min=0).max()) + 1)
        counts.index_put_((named[known], table.labels[known]), torch.ones(()), accumulate=True)
        # The last row is that of samples without a domain.
        named = torch.cat([_mixes_of(counts[:-1], mixes), torch.tensor([-1])])[named]
    found = torch.tensor(sorted({*named.tolist()} - {-1}), dtype=torch.int64)
    if not len(found):
        raise ConfigurationError(
            f"{_KEY}.subtasks: none of the public samples has known {kind}; choose another of "
            f"{list(get_args(Subtasks))}, or leave algorithm.init_args.ability out"
        )
    return torch.where(named < 0, -1, torch.searchsorted(found, named))


def _mixes_of(counts: Tensor, mixes: int) -> Tensor:
    """Return the group (D,) of each row of (D, C) counts by its shares; -1 for an empty row."""
    from scipy.cluster.vq import kmeans2  # of the extra `eclm`

    groups = torch.full((len(counts),), -1)
    filled = counts.sum(dim=1) > 0
    if not filled.any():
        return groups
    shares = counts[filled] / counts[filled].sum(dim=1, keepdim=True)
    # From the rows that are farthest apart, so that no random number decides.
    first = [0]
    while len(first) < min(mixes, len(np.unique(shares.numpy(), axis=0))):
        first.append(int(torch.cdist(shares, shares[first]).amin(dim=1).argmax()))
    _, found = kmeans2(shares.double().numpy(), shares[first].double().numpy(), minit="matrix")
    groups[filled] = torch.from_numpy(found).long()
    return groups


def load_matrix(gates: Tensor, tasks: Tensor) -> Tensor:
    """Return H (L, T, K), the load of each module under each sub-task: its mean gate.

    Args:
        gates: (N, L, K), the softmax over the modules of a layer. So a row of H sums to one.
        tasks: (N,) int64 sub-task of each sample, from 0 without gaps; -1 for none.

    Example:
        >>> gates = torch.tensor([[[0.5, 0.5]], [[0.0, 1.0]], [[0.25, 0.75]]])
        >>> load_matrix(gates, torch.tensor([0, 0, 1])).tolist()
        [[[0.25, 0.75], [0.25, 0.75]]]
    """
    count = int(tasks.max()) + 1
    means = [gates[tasks == task].mean(dim=0) for task in range(count)]
    return torch.stack(means, dim=1)


def assign_modules(loads: Tensor, *, module_load: float, task_modules: int) -> Tensor:
    """Choose the modules of each sub-task: for each layer the 0/1 mask M with the largest sum H M.

    The load of a module, the sum of h over its sub-tasks, is at most ``module_load`` (kappa_1), and
    a sub-task has at most ``task_modules`` modules (kappa_2); a linear programme, as in Nebula.
    Each sub-task has at least one (our choice: without any, it has no gate label).

    Args:
        loads: (L, T, K) H.
        module_load: Maximum load of a module; infinity for no limit.
        task_modules: Maximum number of modules of a sub-task in a layer, at least 1.

    Returns:
        (L, T, K) bool.

    Raises:
        ConfigurationError: If a layer has no such mask; gives the least feasible ``module_load``.

    Example:
        >>> loads = torch.tensor([[[0.6, 0.4], [0.7, 0.3]]])
        >>> assign_modules(loads, module_load=1.0, task_modules=1).tolist()
        [[[False, True], [True, False]]]
    """
    found = [_mask(each, module_load, task_modules) for each in loads.double().cpu().numpy()]
    if any(mask is None for mask in found):
        _, count, modules = loads.shape
        least = max(map(_least_load, loads.double().cpu().numpy())) * modules / count
        raise ConfigurationError(
            f"{_KEY}.module_load: {module_load * modules / count:g} leaves a sub-task without a "
            f"module; the least feasible value is {math.ceil(least * 1e4 - 1e-3) / 1e4:g}"
        )
    return torch.from_numpy(np.stack(found))  # type: ignore[arg-type]


def _mask(h: np.ndarray, module_load: float, task_modules: int) -> np.ndarray | None:
    """Return the mask (T, K) of one layer; ``None`` if there is none."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # of the extra `eclm`

    count, modules = h.shape
    rows = np.kron(np.eye(count), np.ones(modules))
    constraints = [LinearConstraint(rows, lb=1, ub=max(1, task_modules))]
    if math.isfinite(module_load):
        constraints.append(LinearConstraint(_loads(h), ub=module_load + _ROUNDING))
    solved = milp(
        -h.flatten(),
        integrality=1,
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": _GAP},
    )
    return None if solved.x is None else (solved.x > 0.5).reshape(h.shape)


def _least_load(h: np.ndarray) -> float:
    """Return the least feasible limit on the load of a module."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # of the extra `eclm`

    count, modules = h.shape
    size = count * modules
    rows = np.pad(np.kron(np.eye(count), np.ones(modules)), ((0, 0), (0, 1)))
    below = np.hstack([_loads(h), -np.ones((modules, 1))])
    solved = milp(
        np.eye(1, size + 1, size).ravel(),
        integrality=np.append(np.ones(size), 0),
        bounds=Bounds(0, np.append(np.ones(size), np.inf)),
        constraints=[LinearConstraint(rows, lb=1), LinearConstraint(below, ub=0)],
        options={"mip_rel_gap": 0.0},
    )
    return float(solved.fun)


def _loads(h: np.ndarray) -> np.ndarray:
    """Return (K, T K), the row that adds up each module's load over the sub-tasks."""
    count, modules = h.shape
    table: np.ndarray = np.tile(np.eye(modules), count) * h.flatten()
    return table


def gate_labels(loads: Tensor, mask: Tensor) -> Tensor:
    """Return the gate label (L, T, K) of each sub-task: the rows of H M, normalised.

    Example:
        >>> loads = torch.tensor([[[0.5, 0.25, 0.25]]])
        >>> gate_labels(loads, torch.tensor([[[True, True, False]]])).tolist()
        [[[0.6666666865348816, 0.3333333432674408, 0.0]]]
    """
    kept = loads * mask
    return kept / kept.sum(dim=-1, keepdim=True)


def gate_divergence(log_gates: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """KL(label || gates), mean over layers and samples.

    The direction is our choice, since a label is zero where a module is masked: the other one would
    be infinite there. Entries of the label that are zero add nothing.

    Args:
        log_gates: (B, L, K) logarithms of the gates p, without noise.
        labels: (B, L, K) gate label of the sample's sub-task.
        known: (B,) bool, samples that have a sub-task; others do not count.

    Returns:
        A scalar; zero if no sample counts.

    Example:
        >>> p = torch.tensor([[[0.5, 0.5]]])
        >>> gate_divergence(p.log(), torch.tensor([[[1.0, 0.0]]]), torch.tensor([True])).item()
        0.6931471824645996
    """
    wanted = torch.special.xlogy(labels, labels) - labels * log_gates.float()
    each = wanted.sum(dim=-1).mean(dim=-1).masked_fill(~known, 0.0)
    mean: Tensor = each.sum() / known.sum().clamp(min=1)
    return mean
