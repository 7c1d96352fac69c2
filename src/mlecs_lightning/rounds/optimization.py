"""Optimisers and learning-rate schedules, and how a resume with changed settings treats them.

The optimiser state in a checkpoint has two parts. Options (learning rate, weight decay, ...) are
settings: the present settings apply, at the round that the party has reached. Moments are a result
of training: they are kept if the present optimiser can use them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mlecs_lightning.class_paths import ClassPath, build_class, import_class
from mlecs_lightning.differences import differences
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.settings import ModelSettings

__all__ = ["Lent", "Optimization", "origin", "to_cpu", "why_anew"]

_HOME = "torch.optim"
_STATED = ("optimizer", "lr_scheduler")


class Lent(NamedTuple):
    """The state of an optimiser and its scheduler while another client uses them.

    Attributes:
        moments: The optimiser's state of each parameter.
        options: The options of each parameter group.
        schedule: The scheduler's state; empty without one.
        rounds: Number of rounds so far.
    """

    moments: dict[Tensor, dict[str, Any]]
    options: list[dict[str, Any]]
    schedule: dict[str, Any]
    rounds: int


class Optimization:
    """The optimiser of a party with its scheduler, which steps once per round.

    Attributes:
        optimizer: The optimiser.
    """

    def __init__(
        self, settings: ModelSettings, optimizer: Optimizer, scheduler: LRScheduler | None
    ) -> None:
        """Store the fresh parts; a resume with changed settings starts from them.

        Args:
            settings: What they were built from.
            optimizer: The optimiser.
            scheduler: Its scheduler, if there is one.
        """
        self.optimizer, self._scheduler = optimizer, scheduler
        self._settings = {name: getattr(settings, name) for name in _STATED}
        self._rounds = 0
        self._fresh = to_cpu(optimizer.state_dict())  # some have a state from the start
        self._schedule = to_cpu(scheduler.state_dict()) if scheduler else {}

    @property
    def rounds(self) -> int:
        """Number of rounds of this party that have ended; a part of its state."""
        return self._rounds

    def end_round(self) -> None:
        """Step the learning rate to its value for the next round."""
        self._rounds += 1
        if self._scheduler is not None:
            with warnings.catch_warnings():
                # A round may have no step, with a limit of 0 or an objective of the user's.
                warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
                self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state, copied to the CPU, with its settings and number of rounds."""
        state = {
            "optimizer": to_cpu(self.optimizer.state_dict()),
            "settings": to_cpu(self._settings),
            "rounds": self._rounds,
        }
        if self._scheduler is not None:
            state["lr_scheduler"] = to_cpu(self._scheduler.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Restore what `state_dict` returned, under the present settings.

        Returns:
            The settings that differ from those of the state, and whether the moments are lost.
        """
        saved, settings = state["optimizer"], state.get("settings", self._settings)
        changed = differences(settings, self._settings)
        # Whether an optimiser is fused also depends on the precision.
        if not changed and _fused(saved) == _fused(self._fresh):
            # A copy, since an optimiser updates the given tensors in place.
            self.optimizer.load_state_dict(to_cpu(saved))
            if self._scheduler is not None:
                self._scheduler.load_state_dict(to_cpu(state["lr_scheduler"]))
            self._rounds = int(state.get("rounds", 0))
            return []
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        old, new = settings["optimizer"], self._settings["optimizer"]
        anew = why_anew(saved["state"], old, new, parameters)
        moments = {} if anew else {"state": saved["state"]}
        self.optimizer.load_state_dict(to_cpu(self._fresh | moments))
        self._move_to(int(state.get("rounds", 0)))
        return [*changed.values(), *([anew] if anew else [])]

    def lend(self) -> Lent:
        """Return the present state without a copy, for `take_back`; the optimiser has none then."""
        inner = _inner(self.optimizer)
        moments = dict(inner.state)
        inner.state.clear()
        options = [{k: v for k, v in g.items() if k != "params"} for g in inner.param_groups]
        schedule = to_cpu(self._scheduler.state_dict()) if self._scheduler else {}
        return Lent(moments, options, schedule, self._rounds)

    def take_back(self, lent: Lent) -> None:
        """Restore what `lend` returned."""
        inner = _inner(self.optimizer)
        inner.state.clear()
        inner.state.update(lent.moments)
        for group, options in zip(inner.param_groups, lent.options, strict=True):
            group.update(options)
        if self._scheduler is not None:
            self._scheduler.load_state_dict(to_cpu(lent.schedule))
        self._rounds = lent.rounds

    def _move_to(self, round: int) -> None:
        """Step the learning rate from its initial value to that of a round.

        Raises:
            ValueError: If the scheduler ends before that round.
        """
        self._rounds = 0
        if self._scheduler is not None:
            self._scheduler.load_state_dict(to_cpu(self._schedule))
        for _ in range(round):
            self.end_round()


def why_anew(
    saved: Mapping[int, Mapping[str, Any]],
    old: ClassPath,
    new: ClassPath,
    parameters: Sequence[Tensor],
) -> str | None:
    """Return why an optimiser cannot use saved moments, or ``None`` if it can.

    Args:
        saved: The old optimiser's state of each parameter, by index.
        old: Class path of the old optimiser.
        new: Class path of the new optimiser.
        parameters: The parameters of the new optimiser, in the order of the indices.
    """
    before, now = (str(each["class_path"]).rpartition(".")[2] for each in (old, new))
    if not _same_class(old, new):
        return f"the optimizer's moments begin anew: {before} in the checkpoint, {now} now"
    # A trial step shows which moments it needs; that depends on amsgrad, momentum, ...
    trial = [torch.zeros_like(p, requires_grad=True) for p in parameters]
    optimizer = build_class(new, trial, home=_HOME, key="optimizer")
    for parameter in trial:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    needed = optimizer.state_dict()["state"]
    missing = {key for n, own in saved.items() for key in needed.get(n, {}).keys() - own.keys()}
    if not missing:
        return None
    return (
        f"the optimizer's moments begin anew: {now} has no {', '.join(sorted(missing))} from the "
        f"{before} in the checkpoint"
    )


def _same_class(one: ClassPath, other: ClassPath) -> bool:
    try:
        return bool(
            import_class(one, home=_HOME, key="optimizer")
            is import_class(other, home=_HOME, key="optimizer")
        )
    except ConfigurationError:  # the checkpoint's class is not installed here
        return False


def origin(checkpoint: Mapping[str, Any], party: str, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings and rounds of a state that lacks them, as earlier versions wrote it.

    Args:
        checkpoint: The checkpoint.
        party: A client, or ``server``.
        saved: Its state.
    """
    if "settings" in saved or "about" not in checkpoint:
        return {}
    models = checkpoint["about"]["models"]
    built = (
        models["server"]
        if party == "server"
        else models["architectures"][int(models["clients"][party])]
    )
    rounds = int(checkpoint["round"]) + ("partial" not in checkpoint)
    return {
        "settings": {name: built["settings"][name] for name in _STATED},
        "rounds": saved.get("lr_scheduler", {}).get("last_epoch", rounds),
    }


def to_cpu(value: Any) -> Any:  # noqa: ANN401 - any nested state
    """Return a copy of a nested state with its tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {k: to_cpu(v) for k, v in value.items()}
    if isinstance(value, list):
        return [to_cpu(v) for v in value]
    return value


def _inner(optimizer: Optimizer) -> Optimizer:
    """Return the optimiser itself, where Fabric has wrapped it."""
    inner: Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _fused(optimizer: Mapping[str, Any]) -> list[bool]:
    return [bool(group.get("fused")) for group in optimizer["param_groups"]]
