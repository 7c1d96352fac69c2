"""Checks before training that rounds will have the value by which checkpoints are compared."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch.utilities import rank_zero_warn

from mlecs_lightning.callbacks.monitor import Monitor, check_mode, unknown_value
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.federated.run import Run
from mlecs_lightning.rounds.participation import LoopSettings

__all__ = ["DEFAULT_MONITOR", "check_monitor"]

DEFAULT_MONITOR = "clients/val/loss"


def check_monitor(run: Run, settings: LoopSettings, *, max_rounds: int, save_top_k: int) -> None:
    """Refuse a monitored value that no round can have, and a wrong mode.

    Warn if the best rounds are to be kept but no round will have the value.

    Args:
        run: A run that is about to train. If it has no validation samples at all, the name cannot
            be checked. The default name is accepted even if the clients have none.
        settings: Says after which rounds validation is due.
        max_rounds: As in `FederatedTrainer`.
        save_top_k: As in `FederatedTrainer`.

    Raises:
        ConfigurationError: If the name or the mode is wrong; it says which are right.
    """
    monitor, clients = run.monitor, run.federation.evaluated
    known = [
        *run.evaluator.validation_names(clients),
        *run.continual.names(clients, rouge=run.evaluator.rouge),
    ]
    if monitor.name in known:
        check_mode("trainer.monitor_mode", monitor)
        if run.evaluator.draws(len(clients)):
            _check_drawn(monitor, clients)
    elif known and monitor.name != DEFAULT_MONITOR:
        raise unknown_value("trainer.monitor", monitor.name, known)
    rounds = range(run.next_round, max_rounds)
    validated = any(settings.validates(number) for number in rounds)
    seen = monitor.name in known and (validated or "/val/" not in monitor.name)
    if save_top_k > 0 and rounds and not seen:
        why = "it has no samples" if validated else "none is validated"
        rank_zero_warn(
            f"trainer.save_top_k is {save_top_k}, but no further round will have a "
            f"{monitor.name!r}: {why} (trainer.check_val_every_n_rounds is {settings.val_every}, "
            f"max_rounds {max_rounds}). Only the newest checkpoint is kept"
        )


def _check_drawn(monitor: Monitor, clients: Iterable[str]) -> None:
    """Refuse a value of one client, which most rounds lack if a share is scored."""
    one = next((c for c in clients if monitor.name.startswith(f"clients/{c}/")), None)
    if one is not None:
        raise ConfigurationError(
            f"trainer.monitor {monitor.name!r}: client {one!r} is scored only after the rounds in "
            "which trainer.limit_eval_clients draws it; monitor a mean over the clients, such as "
            f"{DEFAULT_MONITOR!r}, or score all clients"
        )
