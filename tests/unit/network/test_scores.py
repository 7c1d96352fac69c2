"""Scores of devices: sent if both ends want it, and those that a simulation finds."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mlecs_lightning import FedAvg
from mlecs_lightning.network.envelope import Envelope
from mlecs_lightning.wire import Message
from mlecs_lightning.wire.encoding import encode

ALL = ["adapter", "modalities", "samples", "report"]


def test_scores_are_sent_by_those_devices_that_allow_it(
    tiny: SimpleNamespace, network: SimpleNamespace, tmp_path: Path
) -> None:
    algorithm = FedAvg(steps=tiny.steps(warmup=1))
    simulated = tiny.fit(algorithm, tmp_path / "here", max_rounds=1)
    trainer = tiny.trainer(tmp_path / "there", max_rounds=1)
    wire = network.wire(network.devices(algorithm, tmp_path / "devices", trainer))
    wire.sessions["kitchen"].allow = [*ALL, "scores"]
    wire.sessions["hall"].allow = ALL
    summary = network.serve(algorithm, trainer, wire, scores=True)
    assert summary["clients"]["kitchen"] == simulated["clients"]["kitchen"]
    for client in ("hall", "study"):
        assert summary["clients"][client]["own"] == {}
    assert summary["mean"]["all"] == summary["clients"]["kitchen"]["all"]
    (*_, (_, _, answer)) = (each for each in wire.log if each[0] == "kitchen")
    counted = summary["communication"]["by_component"]["evaluation"]
    assert sum(counted.values()) == len(Envelope.of(answer).parts[0])
    log = tmp_path / "there" / "tiny" / "version_0" / "clients" / "hall" / "errors.log"
    assert "`allow` of device 'hall' does not name 'scores'" in log.read_text()


HOSTILE: dict[str, tuple[dict[str, Any], Tensor, str]] = {
    "kitchen": ({}, torch.tensor(torch.nan, dtype=torch.float64), "not finite"),
    "hall": ({"round": math.inf}, torch.zeros(()), "infinity"),
    "study": ({"client": "kitchen"}, torch.zeros(()), "it says that it is client 'kitchen'"),
}


def test_scores_that_are_none_are_left_out_and_named(
    tiny: SimpleNamespace, network: SimpleNamespace, tmp_path: Path
) -> None:
    algorithm = FedAvg(steps=tiny.steps())
    trainer = tiny.trainer(tmp_path / "there", max_rounds=1)
    wire = network.wire(network.devices(algorithm, tmp_path / "devices", trainer))

    def spoil(client: str, answer: bytes) -> bytes:
        if Envelope.of(answer).kind == "update":
            return answer
        lies, told, _ = HOSTILE[client]
        about: dict[str, Any] = {"client": client, "round": 0}
        data = encode(Message({"scores/own/macro_f1": told}), about)
        return Envelope("scores", about | lies, [data]).to_bytes()

    wire.spoil = spoil
    summary = network.serve(algorithm, trainer, wire, scores=True)
    assert "evaluation" not in summary["communication"]["by_component"]
    for client, (_, _, words) in HOSTILE.items():
        assert summary["clients"][client]["own"] == {}
        log = tmp_path / "there" / "tiny" / "version_0" / "clients" / client / "errors.log"
        assert words in log.read_text()
