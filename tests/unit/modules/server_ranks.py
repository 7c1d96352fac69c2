"""What each process of `test_server_ddp.py` does with its part of three batches of seven."""

import os
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from mlecs_lightning import MLECS, CoPLMs, Digits
from mlecs_lightning.data.sampling import SeededLoader, draw_batches
from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.modules import EdgeModule, Objective, ServerModule
from mlecs_lightning.modules.pocket import make_pocket
from mlecs_lightning.settings import (
    BackboneSettings,
    ConnectorSettings,
    LoraSettings,
    ModelSettings,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")

STEPS, BATCH, SEED = 3, 7, 4
ALGORITHM = MLECS(temperature=0.3, contrast_weight=0.5)
# Objective, and whether rank 1 lacks a modality. Samples that lack different ones are no pair of a
# contrast, so ranks meet each other in it only where they lack nothing.
RUNS: dict[str, tuple[Objective | None, bool]] = {
    "language": (None, True),
    "both towers": (ALGORITHM.objectives.all_towers, True),
    "se_ccl": (ALGORITHM.objectives.se_ccl, False),
    "se_ccl, lacking": (ALGORITHM.objectives.se_ccl, True),
    "se_ccl of ids": (MLECS(class_aware=False).objectives.se_ccl, False),
    "mutual": (CoPLMs().mutual, True),
}
DIGITS = Digits()


def table(*, lacking: bool) -> SampleTable:
    """Return 24 samples whose answers differ in length.

    Args:
        lacking: Those that fall to rank 1 lack a modality, and a few of rank 0 another one.
    """
    samples = DIGITS.public().select(range(24))
    present = samples.present.clone()
    for batch in draw_batches(24, BATCH, steps=STEPS, seed=SEED) if lacking else []:
        present[batch[1::2], samples.modalities.index("fourier")] = False
        present[batch[2], samples.modalities.index("pixels")] = False
    answers = tuple(" ".join([t] * (1 + n % 3)) for n, t in enumerate(samples.targets))
    return replace(samples.mask(present), targets=answers)


def settings() -> ModelSettings:
    texts = DIGITS.pretraining_pairs(), DIGITS.public().instructions
    return ModelSettings(
        backbone=BackboneSettings(str(make_pocket("pocket/slm", *texts))),
        lora=LoraSettings(r=2, alpha=4, dropout=0.0),
        connector=ConnectorSettings(width=16, prompt_length=4, dropout=0.0),
    )


def build(size: int) -> tuple[ServerModule, nn.Module]:
    """Return a server, and what trains it: itself or DDP."""
    torch.manual_seed(0)
    module = ServerModule(settings(), settings(), DIGITS.modalities).train()
    module.sharded = size > 1
    if size == 1:
        return module, module
    return module, DistributedDataParallel(module, find_unused_parameters=True)


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {
        name: None if p.grad is None else p.grad.clone()
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def train(rank: int, size: int, objective: Objective | None, *, lacking: bool) -> dict[str, Any]:
    """Take three steps; return losses, the first step's gradients and the weights."""
    module, wrapped = build(size)
    # Not Adam, which takes steps of full size along gradients that are rounding errors.
    optimizer = SGD(module.trainable_parameters(), lr=0.03, momentum=0.9, weight_decay=0.01)
    loader = SeededLoader(table(lacking=lacking), batch_size=BATCH, shard=(rank, size))
    losses, first = [], None
    for batch in loader.take(STEPS, seed=SEED):
        values = wrapped(batch, objective)
        values["loss"].backward()
        first = first or gradients(module)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append({name: value.detach() for name, value in values.items()})
    return {"losses": losses, "gradients": first, "weights": module.trainable_state()}


def seen(rank: int, size: int) -> dict[str, list[int]]:
    """Return how many samples, target tokens and samples with a modality each batch has."""
    module, _ = build(1)
    batches = list(
        SeededLoader(table(lacking=True), batch_size=BATCH, shard=(rank, size)).take(
            STEPS, seed=SEED
        )
    )
    column = batches[0].modalities.index("fourier")
    return {
        "samples": [len(batch.ids) for batch in batches],
        "tokens": [int(module.read(batch).tokens()) for batch in batches],
        "fourier": [int(batch.present[:, column].sum()) for batch in batches],
    }


def frozen(rank: int, size: int) -> dict[str, Any]:
    """Return weights before DDP, in it and after two steps; rank 1 changes two beforehand."""
    torch.manual_seed(0)
    module = ServerModule(settings(), settings(), DIGITS.modalities).train()
    names = {
        "frozen": next(n for n in module.state_dict() if "ln_f.weight" in n),
        "trained": "towers.llm.connector.absent",
    }
    state = module.state_dict()
    backup = state[names["frozen"]].clone()
    before = {k: state[n].clone() for k, n in names.items()}
    if rank == 1:
        for name in names.values():
            state[name].add_(1.0)
    module.sharded = True
    wrapped = DistributedDataParallel(module, find_unused_parameters=True)
    begun = {k: module.state_dict()[n].clone() for k, n in names.items()}
    optimizer = SGD(module.trainable_parameters(), lr=0.1)
    for batch in SeededLoader(table(lacking=True), batch_size=BATCH, shard=(rank, size)).take(
        2, seed=SEED
    ):
        wrapped(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    after = {k: module.state_dict()[n].clone() for k, n in names.items()}
    state[names["frozen"]].copy_(backup)  # shared by all modules of the process
    return {"before": before, "begun": begun, "after": after}


def evaluated(rank: int, size: int) -> dict[str, Any]:
    """Return what a rank says of a batch that the others do not evaluate: rank 0 alone is asked."""
    if rank == 1:
        return {}
    module, _ = build(1)
    module.sharded = size > 1
    batch = table(lacking=True).__getitems__(list(range(5)))
    with torch.no_grad():
        return ALGORITHM.objectives.se_ccl(module.eval(), batch)


def edge(rank: int, size: int) -> Tensor:
    """Return the loss of a client, whose module is that of one rank."""
    torch.manual_seed(0)
    module = EdgeModule(settings(), DIGITS.modalities).train()
    batch = table(lacking=True).__getitems__([rank, 3, 5] if rank else list(range(4)))
    return module(batch)["loss"].detach()


def results(rank: int, size: int) -> dict[str, Any]:
    runs = {
        name: train(rank, size, objective, lacking=lacking)
        for name, (objective, lacking) in RUNS.items()
    }
    out: dict[str, Any] = {"runs": runs, "seen": seen(rank, size)}
    out["evaluated"] = evaluated(rank, size)
    out["edge"] = edge(rank, size) if rank == 0 else None
    if size > 1:
        out["frozen"] = frozen(rank, size)
        dist.barrier()
    return out
