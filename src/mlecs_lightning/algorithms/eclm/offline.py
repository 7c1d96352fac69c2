"""The offline stage of ECLM: the cloud trains its modules and their selector on public data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mlecs_lightning.algorithms.eclm.gating import load_balance, top_k_gates
from mlecs_lightning.algorithms.eclm.models import CloudParts, modular_of
from mlecs_lightning.data.availability import without_some_modalities
from mlecs_lightning.modules import Losses, ServerModule
from mlecs_lightning.types import Batch

__all__ = ["Gated", "OfflineStage"]


class Gated(NamedTuple):
    """What a gated pass gives.

    Attributes:
        lm: L_LM, scalar.
        logits: (B, L, K) of the selector, without noise, in float32.
        p: (B, L, K) gates before the choice, with noise.
    """

    lm: Tensor
    logits: Tensor
    p: Tensor


@dataclass(frozen=True)
class OfflineStage:
    """L_LM of the modular model under gates, and the load balance of its modules.

    Attributes:
        modules: K, modules of each layer.
        active: Smallest number of modules of a layer that a sample uses.
        gate_noise: Standard deviation of the noise on the gate logits.
        balance_weight: Weight of the load-balancing loss.
        modality_dropout: Probability that a sample lacks a modality.
        weighted: Whether a chosen module counts with its gate.
    """

    modules: int
    active: int
    gate_noise: float
    balance_weight: float
    modality_dropout: float
    weighted: bool = False

    def faults(self, key: str) -> list[str]:
        """List values out of range.

        Args:
            key: The YAML key of the values, for messages.
        """
        ranges = {
            "modules": (self.modules >= 2, "at least 2"),
            "active": (1 <= self.active <= self.modules, f"in [1, modules={self.modules}]"),
            "gate_noise": (self.gate_noise >= 0, "at least 0"),
            "balance_weight": (self.balance_weight >= 0, "at least 0"),
            "modality_dropout": (0 <= self.modality_dropout < 1, "in [0, 1)"),
        }
        return [
            f"{key}.{name} must be {allowed}, got {getattr(self, name)}"
            for name, (fits, allowed) in ranges.items()
            if not fits
        ]

    def loss(self, server: ServerModule, batch: Batch) -> Losses:
        """L_LM(gated model) + weight * load balance; gates by noisy top-k of the selector."""
        gated = self.forward(server, batch)
        balance = load_balance(server.gather(gated.p))
        loss = gated.lm + self.balance_weight * balance
        return {"loss": loss, "lm": gated.lm, "balance": balance}

    def forward(self, server: ServerModule, batch: Batch) -> Gated:
        """Run the modular model under gates by noisy top-k of the selector."""
        if server.training and self.modality_dropout:
            batch = without_some_modalities(batch, self.modality_dropout)
        features, present = server.features(batch)
        tower, size = server.tower("slm"), len(batch.ids)
        _, _, fused = tower.connector.latent(features, present)
        logits = CloudParts.of(server).selector(fused)
        most = logits.shape[-1]  # the bypass included
        active = torch.randint(self.active, most + 1, (size,), device=logits.device)
        noise = self.gate_noise if server.training else 0.0
        gates, p = top_k_gates(logits, active, noise=noise, weighted=self.weighted)
        with modular_of(server).gated(gates):
            output = tower(features, present, batch.instructions, batch.targets)
        return Gated(server.mean_loss(output), logits.float(), p)
