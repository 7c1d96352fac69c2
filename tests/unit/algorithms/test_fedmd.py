"""FedMD: answers cross, weights do not."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlecs_lightning import ClientSettings, FedMD
from mlecs_lightning.algorithms.answers import Labels
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.wire.encoding import decode

CLIENTS = {
    "kitchen": ClientSettings(["pixels", "profile"]),
    "hall": ClientSettings(["fourier"], lora={"r": 4, "alpha": 4}),
}


def run(tiny: SimpleNamespace, root: Path, rounds: int, **options: Any) -> Any:  # noqa: ANN401
    trainer = tiny.trainer(root, max_rounds=rounds, enable_checkpointing=True)
    data = tiny.data(public_labelled=0.1)
    algorithm = FedMD(steps=tiny.steps(warmup=1))
    return trainer.fit(algorithm, data, tiny.parties(CLIENTS), **options)


def server(root: Path) -> dict[str, Any]:
    return torch.load(max(root.rglob("round=*.ckpt")), weights_only=True)["server"]


def test_answers_cross_and_no_weight_does_and_ranks_may_differ(
    tiny: SimpleNamespace,
    tapped: Callable[[], AbstractContextManager[SimpleNamespace]],
    tmp_path: Path,
) -> None:
    with tapped() as log:
        summary = run(tiny, tmp_path, 2)
    ways = summary["communication"]["by_component"].values()
    assert set().union(*ways) == {"answers", "header", "report"}
    messages = [(way, decode(content)[0]) for way, _, content in log.messages]
    for way, message in messages:
        assert {name.partition("/")[0] for name in message.tensors} <= {"answers", "report"}
        if way == "uplink":
            assert any(Labels.of(message).texts)
    down = [Labels.of(message).texts for way, message in messages if way == "downlink"]
    assert [bool(texts) for texts in down] == [False, False, True, True]


def test_it_goes_on_to_the_same_bits(tiny: SimpleNamespace, tmp_path: Path) -> None:
    run(tiny, tmp_path / "a", 2)
    run(tiny, tmp_path / "b", 1)
    run(tiny, tmp_path / "b", 2, ckpt_path="last")
    whole, again = server(tmp_path / "a")["model"], server(tmp_path / "b")["model"]
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_where_all_have_a_target_there_is_nothing_to_answer(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"nothing to answer.*public_labelled"):
        tiny.trainer(tmp_path).fit(FedMD(), tiny.data(), tiny.parties())
    loaders = tiny.loaders(tiny.data())  # of a run whose warm-up was loaded
    with pytest.raises(ConfigurationError, match="nothing to answer"):
        FedMD().after_warmup(None, loaders, None)  # type: ignore[arg-type]
