"""Checks that clients and schedulers suffice for all rounds of a run."""

from __future__ import annotations

import warnings
from collections import Counter

import torch

from mlecs_lightning.class_paths import build_class
from mlecs_lightning.clients.parties import Parties
from mlecs_lightning.errors import ConfigurationError, FaultList
from mlecs_lightning.rounds.participation import LoopSettings
from mlecs_lightning.settings import ModelSettings

__all__ = ["check_rounds"]


def check_rounds(parties: Parties, loop: LoopSettings, *, rounds: int) -> None:
    """Check the number of clients, and step every scheduler as often as the run will.

    Some schedulers, such as `OneCycleLR`, take a fixed number of steps and would otherwise fail in
    the middle of a run.

    Args:
        parties: Their settings.
        loop: Says how many clients there must be, and which are drawn for a round: their
            schedulers step in these alone.
        rounds: ``trainer.max_rounds``; 0 for an evaluation.

    Raises:
        ConfigurationError: If there are too few clients, or a scheduler ends before the run; it
            names all that do.
    """
    if loop.participation.min_clients > len(parties.profiles):
        raise ConfigurationError(
            f"trainer.participation.min_clients is {loop.participation.min_clients}, but there are "
            f"only {len(parties.profiles)} clients"
        )
    asked = [("server", parties.server, rounds)]
    if any(model.lr_scheduler for model in parties.models.values()):
        names = tuple(parties.profiles)
        drawn = Counter(
            client
            for number in range(rounds)
            for client in loop.participants(names, seed=parties.seed, round=number)
        )
        if loop.privacy is not None and loop.privacy.secure_noise:
            drawn = Counter(dict.fromkeys(names, rounds))  # nobody knows the draws of the run
        asked += [(f"clients.{name}", parties.models[name], drawn[name]) for name in names]
    faults, known = FaultList(), set[str]()
    for key, settings, steps in asked:
        if (same := f"{settings.optimizer} {settings.lr_scheduler} {steps}") not in known:
            known.add(same)
            with faults.collecting():
                if fault := _fault(settings, steps, key=key):
                    faults.append(f"{fault}; trainer.max_rounds is {rounds}")
    faults.raise_any()


def _fault(settings: ModelSettings, steps: int, *, key: str) -> str | None:
    """Return the fault of a scheduler that ends too early, or ``None``."""
    if settings.lr_scheduler is None:
        return None
    parameter = torch.nn.Parameter(torch.zeros(1, 1))
    home, key = "torch.optim", f"{key}.lr_scheduler"
    optimizer = build_class(settings.optimizer, [parameter], home=home, key=key)
    scheduler = build_class(
        settings.lr_scheduler, optimizer, home="torch.optim.lr_scheduler", key=key
    )
    for taken in range(steps):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "the optimiser has not stepped"
                scheduler.step()
        except ValueError as error:
            given = settings.lr_scheduler.get("init_args") or {}
            options = ", ".join(f"{k} {v}" for k, v in given.items() if v is not None)
            return (
                f"{key}: {settings.lr_scheduler['class_path']} ({options}) ends after {taken} "
                f"rounds, and the party takes part in {steps}: {error}"
            )
    return None
