"""The offline stage of ECLM: the cloud trains its modules and their selector on public data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mlecs_lightning.algorithms.eclm.gating import load_balance, top_k_gates
from mlecs_lightning.algorithms.eclm.models import CloudParts, modular_of
from mlecs_lightning.data.availability import without_some_modalities
from mlecs_lightning.modules import Losses, ServerModule
from mlecs_lightning.types import Batch

__all__ = ["OfflineStage"]


@dataclass(frozen=True)
class OfflineStage:
    """L_LM of the modular model under gates, and the load balance of its modules.

    Attributes:
        modules: K, modules of each layer.
        active: Smallest number of modules of a layer that a sample uses.
        gate_noise: Standard deviation of the noise on the gate logits.
        balance_weight: Weight of the load-balancing loss.
        modality_dropout: Probability that a sample lacks a modality.
    """

    modules: int
    active: int
    gate_noise: float
    balance_weight: float
    modality_dropout: float

    def loss(self, server: ServerModule, batch: Batch) -> Losses:
        """L_LM(gated model) + weight * load balance; gates by noisy top-k of the selector."""
        if server.training and self.modality_dropout:
            batch = without_some_modalities(batch, self.modality_dropout)
        features, present = server.features(batch)
        tower, size = server.tower("slm"), len(batch.ids)
        _, _, fused = tower.connector.latent(features, present)
        logits = CloudParts.of(server).selector(fused)
        active = torch.randint(self.active, self.modules + 1, (size,), device=logits.device)
        noise = self.gate_noise if server.training else 0.0
        gates, p = top_k_gates(logits, active, noise=noise)
        with modular_of(server).gated(gates):
            output = tower(features, present, batch.instructions, batch.targets)
        lm, balance = server.mean_loss(output), load_balance(server.gather(p))
        return {"loss": lm + self.balance_weight * balance, "lm": lm, "balance": balance}
