"""What a `FederatedTrainer` was set to, checked; what is Fabric's own is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import Logger

from mlecs_lightning.callbacks.monitor import Monitor
from mlecs_lightning.checkpoints.client_store import StoreKind
from mlecs_lightning.differences import as_data
from mlecs_lightning.errors import FaultList
from mlecs_lightning.extras import Need
from mlecs_lightning.metrics import ROUGE, BertScore
from mlecs_lightning.rounds.participation import Limit, LoopSettings
from mlecs_lightning.wire.channel import MessageLimits
from mlecs_lightning.wire.codec import Codec

__all__ = ["TrainerSettings"]


@dataclass(frozen=True)
class TrainerSettings:
    """The arguments of a `FederatedTrainer`, described there.

    Attributes:
        loop: Those that concern rounds.
        checkpointing: Whether a checkpoint is written after every round.
        root: ``default_root_dir``, expanded.
        name: Name of the run; ``None`` for algorithm and data set.
    """

    max_rounds: int
    loop: LoopSettings
    gradient_clip_val: float | None
    limit_val_batches: int | None
    limit_test_batches: int | None
    rouge: bool
    limit_eval_clients: Limit
    limit_test_clients: Limit
    bertscore: bool | str
    message_limits: MessageLimits
    codec: Codec | None
    store: StoreKind
    monitor: Monitor
    save_top_k: int
    warmup_ckpt_path: Path | None
    allow_other_config: bool
    checkpointing: bool
    logger: bool | list[Logger]
    root: Path
    name: str | None

    def __post_init__(self) -> None:
        """Check ranges; what is grouped has checked itself."""
        faults = FaultList()
        for key, value, least in (
            ("max_rounds", self.max_rounds, 1),
            ("gradient_clip_val", self.gradient_clip_val, 0),
            ("limit_train_batches", self.loop.limit_train, 0),
            ("limit_val_batches", self.limit_val_batches, 0),
            ("limit_test_batches", self.limit_test_batches, 0),
            ("save_top_k", self.save_top_k, -1),
        ):
            if value is not None and not value >= least:
                faults.append(f"trainer.{key} must be at least {least}, got {value}")
        for key, limit in (
            ("limit_eval_clients", self.limit_eval_clients),
            ("limit_test_clients", self.limit_test_clients),
        ):
            if isinstance(limit, float) and not 0 < limit <= 1:
                faults.append(
                    f"trainer.{key} is a number of clients as an integer, or a fraction of them in "
                    f"(0, 1]; got {limit}"
                )
            elif limit is not None and limit < 1:
                faults.append(
                    f"trainer.{key} must be at least 1, got {limit}; check_val_every_n_rounds: 0 "
                    "validates nobody"
                )
        faults.raise_any()

    def needs(self) -> tuple[Need, ...]:
        """Return the optional packages that a run which scores answers needs."""
        found = [ROUGE] if self.rouge else []
        if self.bertscore:
            found += [BertScore.need(None if self.bertscore is True else self.bertscore)]
        if self.loop.privacy is not None:
            found += [Need("trainer.privacy", "privacy")]
        return tuple(found)

    def compared(self) -> Mapping[str, Any]:
        """Return the arguments that change what is computed, as plain data under their names."""
        return {
            "gradient_clip_val": self.gradient_clip_val,
            "limit_train_batches": self.loop.limit_train,
            "participation": as_data(self.loop.participation),
            "faults": as_data(self.loop.faults),
            "update_limits": as_data(self.loop.update_limits),
            "privacy": as_data(self.loop.privacy),
            "message_limits": as_data(self.message_limits),
            "codec": as_data(self.codec),
            # Checkpoints of earlier versions lack it; there 1 is as good as nothing.
            "cohort": None if self.loop.cohort == 1 else self.loop.cohort,
        }
