"""A run over a network ends in the bits of the simulation."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from mlecs_lightning import CDCCA, ECLM, MLECS, CoPLMs, FedAvg, FedMD, FedProx, MultiFedAvg
from mlecs_lightning.algorithms.answers import Answers
from mlecs_lightning.algorithms.eclm.derivation import Budget
from mlecs_lightning.checkpoints.checkpoint import checkpoint_of, client_state, load_checkpoint
from mlecs_lightning.clients import ClientSettings, Federation
from mlecs_lightning.data import DomainStream
from mlecs_lightning.network.envelope import Envelope
from mlecs_lightning.rounds import Algorithm, Participation, Privacy, UpdateLimits
from mlecs_lightning.wire import DWC
from tests.integration.network.processes import of_rounds, plain


class Case(NamedTuple):
    """What a method is tried with."""

    algorithm: Algorithm
    settings: Federation
    data: dict[str, Any]
    trainer: dict[str, Any] = {}  # noqa: RUF012 - never changed


def case(name: str, tiny: SimpleNamespace) -> Case:
    steps, parties = tiny.steps(warmup=1), tiny.parties()
    few: dict[str, Any] = {"public_labelled": 0.2}
    match name:
        case "eclm":
            model = tiny.model(lora={"target_modules": ["c_fc", "mlp.c_proj"]})
            algorithm = ECLM(modules=4, active=2, budget=Budget(modules=0.5), steps=steps)
            return Case(algorithm, tiny.parties(server=model, edge=model), {})
        case "cdcca":
            phone = ClientSettings(["pixels", "profile", "fourier"], domains=["bold", "light"])
            stream = {"partition": "domain", "schedule": DomainStream(["bold", "light"])}
            return Case(CDCCA(steps=steps), tiny.parties({"phone": phone}), stream)
        case "freeze_a":
            return Case(FedAvg(steps=steps, aggregation="freeze_a"), parties, {})
        case "privacy":
            privacy = Privacy(clip=0.1, noise_multiplier=1.0, delta=0.01)
            options = {"privacy": privacy, "update_limits": UpdateLimits(max_ratio=None)}
            algorithm = FedAvg(steps=steps, weights="equal")
            return Case(algorithm, parties, {}, {**options, "participation": Participation(0.7)})
        case "fedmd":
            return Case(FedMD(steps=steps), parties, few)
        case "answers":
            return Case(FedAvg(steps=steps, answers=Answers()), parties, few)
        case _:
            kinds = {"fedavg": FedAvg, "fedprox": FedProx, "multifedavg": MultiFedAvg}
            kinds |= {"mlecs": MLECS, "coplms": CoPLMs}
            return Case(kinds[name](steps=steps), parties, {})


def state_of(root: Path) -> tuple[Path, dict[str, Any]]:
    path = checkpoint_of(root / "tiny" / "version_0")
    return path, load_checkpoint(path)


NAMES = (
    "privacy",
    "fedavg",
    "fedprox",
    "freeze_a",
    "mlecs",
    "coplms",
    "eclm",
    "cdcca",
    "answers",
    "fedmd",
    "multifedavg",
)
QUICK = {("mlecs", True), ("freeze_a", False), ("cdcca", False)}


@pytest.mark.parametrize(
    ("name", "coded"),
    [
        pytest.param(
            name,
            coded,
            id=f"{name}-{'dwc' if coded else 'plain'}",
            marks=() if (name, coded) in QUICK else pytest.mark.slow,
        )
        for name in NAMES
        for coded in (False, True)
        if (name, coded) != ("privacy", True)  # refused: a codec keeps what noise does not cover
    ],
)
def test_devices_end_in_the_bits_of_the_simulation(
    tiny: SimpleNamespace, network: SimpleNamespace, tmp_path: Path, name: str, coded: bool
) -> None:
    options: dict[str, Any] = {"max_rounds": 3, "enable_checkpointing": True}
    options |= {"codec": DWC()} if coded else {}
    algorithm, settings, data, more = case(name, tiny)
    options |= more
    tiny.fit(algorithm, tmp_path / "here", settings, tiny.data(**data), **options)
    trainer = tiny.trainer(tmp_path / "there", **options)
    sessions = network.devices(
        case(name, tiny).algorithm,
        tmp_path / "devices",
        trainer,
        settings,
        lambda: tiny.data(**data),
    )
    wire = network.wire(sessions)
    network.serve(
        case(name, tiny).algorithm, trainer, wire, settings=settings, data=tiny.data(**data)
    )

    path, here = state_of(tmp_path / "here")
    _, there = state_of(tmp_path / "there")
    assert of_rounds(there["ledger"]) == here["ledger"]
    for part in ("server", "moves", "claims"):
        assert plain(here[part]) == plain(there[part]), part
    provided = {c: len(Envelope.of(request).parts[0]) for c, request, _ in reversed(wire.log)}
    counted = dict.fromkeys(provided, 0)
    for way, client, _, size in there["ledger"]["bytes"]:
        counted[client] += size if way == "provision" else 0
    assert counted == provided  # what came with the first offer, and no later one
    for client, session in sessions.items():
        simulated = client_state(here["clients"][client], path)
        assert plain(simulated) == plain(session.store.get(client)), client
