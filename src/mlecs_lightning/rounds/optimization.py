"""An optimiser and its learning rate, and what of them goes on under other settings.

What a checkpoint holds of an optimiser is of two kinds. Options (learning rate, weight decay, ...)
are settings: the present ones win, at the round that the party has come to. Moments are what the
training has found out: they are kept if the present optimiser can go on from them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mlecs_lightning.class_paths import ClassPath, build_class, import_class
from mlecs_lightning.differences import differences
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.settings import ModelSettings

__all__ = ["Optimization", "origin", "to_cpu", "why_anew"]

_HOME = "torch.optim"
_STATED = ("optimizer", "lr_scheduler")


class Optimization:
    """The optimiser of a party, with its scheduler, which goes by rounds.

    Attributes:
        optimizer: The optimiser.
    """

    def __init__(
        self, settings: ModelSettings, optimizer: Optimizer, scheduler: LRScheduler | None
    ) -> None:
        """Take the parts, fresh: they are what a change of the settings begins from.

        Args:
            settings: What they were built from.
            optimizer: The optimiser.
            scheduler: Its scheduler, if there is one.
        """
        self.optimizer, self._scheduler = optimizer, scheduler
        self._settings = {name: getattr(settings, name) for name in _STATED}
        self._rounds = 0
        self._fresh = to_cpu(optimizer.state_dict())  # some begin with a state
        self._schedule = to_cpu(scheduler.state_dict()) if scheduler else {}

    def end_round(self) -> None:
        """Let the learning rate go on to its value of the next round."""
        self._rounds += 1
        if self._scheduler is not None:
            with warnings.catch_warnings():
                # A round may have no step, under a limit of 0 or as one's own objective wants it.
                warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
                self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, copied to the CPU, and the settings and rounds that it is of."""
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
            What differs from the settings that the state is of, and whether its moments are lost.
        """
        saved, settings = state["optimizer"], state.get("settings", self._settings)
        changed = differences(settings, self._settings)
        # Fused or not depends on the precision, too.
        if not changed and _fused(saved) == _fused(self._fresh):
            # A copy: an optimiser goes on working in the very tensors that it is given.
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

    def _move_to(self, round: int) -> None:
        """Bring the learning rate from its fresh value to that of a round.

        Raises:
            ValueError: If the scheduler does not reach so far.
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
    """Say why an optimiser cannot go on from moments, ``None`` if it can.

    Args:
        saved: For each parameter, by its number, what the old optimiser had of it.
        old: The optimiser that it is from.
        new: The optimiser that is to go on.
        parameters: What that trains, in the order of the numbers.
    """
    before, now = (str(each["class_path"]).rpartition(".")[2] for each in (old, new))
    if not _same_class(old, new):
        return f"the optimizer's moments begin anew: {before} in the checkpoint, {now} now"
    # What it needs depends on its options (amsgrad, momentum, ...): a step on zeros tells.
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
    except ConfigurationError:  # that of the checkpoint is not on this machine
        return False


def origin(checkpoint: Mapping[str, Any], party: str, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the state of a party does not say itself, in a checkpoint of an earlier version.

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


def to_cpu(value: Any) -> Any:  # noqa: ANN401 - a nested optimiser state
    """Return a copy of a nested state, its tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {k: to_cpu(v) for k, v in value.items()}
    if isinstance(value, list):
        return [to_cpu(v) for v in value]
    return value


def _fused(optimizer: Mapping[str, Any]) -> list[bool]:
    return [bool(group.get("fused")) for group in optimizer["param_groups"]]
