from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.fabric.plugins import Precision

from mlecs_lightning.algorithms import FedAvg


def test_the_scale_of_half_precision_gradients_goes_on(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It adapts over the steps; only a GPU has one, so another state takes its place here."""
    restored: list[dict[str, float]] = []
    monkeypatch.setattr(Precision, "state_dict", lambda _: {"scale": 8.0})
    monkeypatch.setattr(Precision, "load_state_dict", lambda _, state: restored.append(state))
    for rounds, ckpt_path in ((1, None), (2, "last")):
        trainer = tiny.trainer(tmp_path, max_rounds=rounds, enable_checkpointing=True)
        trainer.fit(FedAvg(steps=tiny.steps()), tiny.data(), tiny.parties(), ckpt_path)
    assert restored == [{"scale": 8.0}]
