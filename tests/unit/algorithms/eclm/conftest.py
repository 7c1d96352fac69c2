"""A tiny federation of devices that have parts of the cloud's model."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mlecs_lightning import ECLM
from mlecs_lightning.algorithms.eclm.derivation import Budget
from mlecs_lightning.clients import Federation


@pytest.fixture(scope="session")
def divided(tiny: SimpleNamespace) -> Callable[..., Federation]:
    def call(**values: Any) -> Federation:
        model = tiny.model(lora={"target_modules": ["c_fc", "mlp.c_proj"]})
        settings: Federation = tiny.parties(server=model, edge=model, **values)
        return settings

    return call


@pytest.fixture(scope="session")
def eclm(tiny: SimpleNamespace) -> Callable[..., ECLM]:
    def call(**values: Any) -> ECLM:
        defaults = {"budget": Budget(modules=0.5), "steps": tiny.steps(warmup=1, server=0)}
        return ECLM(**{"modules": 4, "active": 2, **defaults, **values})

    return call
