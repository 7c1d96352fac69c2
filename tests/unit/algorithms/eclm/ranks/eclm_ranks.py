"""What each process of `test_algorithm_ddp.py` does with its part of three batches of seven."""

import os
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from mlecs_lightning import ECLM, Digits
from mlecs_lightning.algorithms.eclm.ability import AbilityStage
from mlecs_lightning.data.sampling import SeededLoader
from mlecs_lightning.modules import ServerModule
from mlecs_lightning.modules.pocket import make_pocket
from mlecs_lightning.settings import (
    BackboneSettings,
    ConnectorSettings,
    LoraSettings,
    ModelSettings,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")

DIGITS = Digits()
# Nothing that a rank would draw for itself: no noise, no dropout, all modules on. The selector has
# a gradient all the same, from both losses.
ALGORITHM = ECLM(modules=4, active=4, gate_noise=0.0, modality_dropout=0.0, balance_weight=0.5)


def results(rank: int, size: int) -> dict[str, Any]:
    texts = DIGITS.pretraining_pairs(), DIGITS.public().instructions
    settings = ModelSettings(
        backbone=BackboneSettings(str(make_pocket("pocket/slm", *texts))),
        lora=LoraSettings(r=2, alpha=4, dropout=0.0, target_modules=["c_fc", "mlp.c_proj"]),
        connector=ConnectorSettings(width=16, prompt_length=4, dropout=0.0),
    )
    torch.manual_seed(0)
    module = ServerModule(settings, settings, DIGITS.modalities).train()
    ALGORITHM.build_server(module, ["kitchen", "hall"])
    module.sharded = size > 1
    wrapped: nn.Module = module
    if size > 1:
        wrapped = DistributedDataParallel(module, find_unused_parameters=True)
    optimizer = SGD(module.trainable_parameters(), lr=0.03, momentum=0.9)
    loader = SeededLoader(DIGITS.public().select(range(24)), batch_size=7, shard=(rank, size))
    table = loader.table
    labels = torch.rand(3, 10, 4, generator=torch.Generator().manual_seed(1)).softmax(dim=-1)
    # Some samples without a sub-task, more on one rank than on the other.
    tasks = {i: int(y) for i, y in zip(table.ids[5:], table.labels[5:], strict=True)}
    ability = AbilityStage(ALGORITHM.offline, 0.5, labels, tasks)
    objectives = [ALGORITHM.warmup_objective()] * 2 + [ability.loss]
    losses = []
    for batch, objective in zip(loader.take(3, seed=4), objectives, strict=True):
        values = wrapped(batch, objective)
        values["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append({name: value.detach() for name, value in values.items()})
    return {"losses": losses, "weights": module.trainable_state()}
