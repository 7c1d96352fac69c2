"""A few digits and settings small enough to train in a moment."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mlecs_lightning.data import Digits, SampleTable
from mlecs_lightning.data.sampling import sequential_loader
from mlecs_lightning.modules import MultimodalLM
from mlecs_lightning.modules.pocket import make_pocket
from mlecs_lightning.settings import (
    BackboneSettings,
    ConnectorSettings,
    LoraSettings,
    ModelSettings,
)
from mlecs_lightning.types import Batch, ModalitySpec


@pytest.fixture(scope="session")
def digits() -> Digits:
    return Digits()


@pytest.fixture(scope="session")
def table(digits: Digits) -> SampleTable:
    """Return 16 public samples, some of which lack a modality."""
    table = digits.public().select(range(16))
    keep = table.present.clone()
    keep[::3, 0] = keep[1::3, 2] = False
    return table.mask(keep)


@pytest.fixture
def loader(table: SampleTable) -> DataLoader[Batch]:
    return sequential_loader(table, 8)


@pytest.fixture
def batch(table: SampleTable) -> Batch:
    return table.__getitems__(range(8))


@pytest.fixture(scope="session")
def modalities(digits: Digits) -> Mapping[str, ModalitySpec]:
    return digits.modalities


@pytest.fixture(scope="session")
def pockets(cache_dir: Path, digits: Digits) -> dict[str, str]:
    """Return the directories of the pocket models of the digits."""
    pairs, instructions = digits.pretraining_pairs(), digits.public().instructions
    return {
        name: str(make_pocket(f"pocket/{name}", pairs, instructions)) for name in ("slm", "llm")
    }


@pytest.fixture(scope="session")
def settings_of(pockets: dict[str, str]) -> Callable[..., ModelSettings]:
    """Return a builder of small settings over a pocket model."""

    def build(pocket: str = "slm", **changes: Any) -> ModelSettings:
        values: dict[str, Any] = {
            "backbone": BackboneSettings(pockets[pocket]),
            "lora": LoraSettings(r=2, alpha=4, dropout=0.0),
            "connector": ConnectorSettings(width=16, prompt_length=4, dropout=0.0),
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-3}},
            "max_new_tokens": 12,
        }
        return ModelSettings(**values | changes)

    return build


@pytest.fixture
def plain_loop() -> Callable[..., dict[str, Tensor]]:
    """Trains a module as one would by hand, a step a batch; returns the weights."""

    def train(
        module: MultimodalLM, batches: Iterable[Batch], *, half: bool = False
    ) -> dict[str, Tensor]:
        optimizer = module.train().configure_optimizers()
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = module(batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return module.trainable_state()

    return train


@pytest.fixture
def trainer_of(tmp_path: Path) -> Callable[..., L.Trainer]:
    """Return a builder of plain Lightning trainers that write nothing unasked."""

    def build(**options: Any) -> L.Trainer:
        quiet = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        return L.Trainer(accelerator="cpu", devices=1, default_root_dir=tmp_path, **quiet | options)

    return build
