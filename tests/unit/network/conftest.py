"""A network whose wire is a function call: each device has objects and a folder of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.fabric import Fabric

from mlecs_lightning import Digits, FedAvg
from mlecs_lightning.clients import Federation
from mlecs_lightning.federated import FederatedTrainer
from mlecs_lightning.network.agreement import Agreement
from mlecs_lightning.network.device import open_device
from mlecs_lightning.network.envelope import Envelope
from mlecs_lightning.network.link import Arrival, Late, NetworkLink
from mlecs_lightning.network.scores import ask_scores
from mlecs_lightning.network.session import DeviceSession
from mlecs_lightning.rounds import Algorithm
from mlecs_lightning.wire import Codec

ROUNDS = 2


class Wire:
    """Hands requests to the sessions of devices, and answers back in the reverse order.

    ``spoil`` may change an answer, or lose it by returning ``None``. The answers of ``late``, round
    and client, come twice, after the offers of a later round.
    """

    def __init__(self, sessions: dict[str, DeviceSession]) -> None:
        self.sessions = sessions
        self.spoil: Callable[[str, bytes], bytes | None] = lambda client, answer: answer
        self.away: set[str] = set()
        self.log: list[tuple[str, bytes, bytes]] = []
        self.late: set[tuple[int, str]] = set()
        self._held: list[tuple[int, Arrival]] = []
        self._sent: list[tuple[str, str, bytes]] = []

    def online(self) -> Iterable[str]:
        return set(self.sessions) - self.away

    def send(self, client: str, data: bytes) -> str:
        ticket = f"{len(self.log)}/{len(self._sent)}/{client}"
        self._sent.append((ticket, client, data))
        return ticket

    def receive(self, timeout: float) -> Iterable[Arrival]:
        sent, self._sent = self._sent, []
        for ticket, client, request in reversed(sent):
            round = Envelope.of(request).header.get("round", -1)
            for since, arrival in [each for each in self._held if each[0] < round]:
                self._held.remove((since, arrival))
                yield from (arrival, arrival)
            answer = self.sessions[client].answer(request)
            self.log.append((client, request, answer))
            arrival = Arrival(ticket, self.spoil(client, answer))
            if (round, client) in self.late and Envelope.of(answer).kind == "update":
                self._held.append((round, arrival))
            else:
                yield arrival


@pytest.fixture(scope="session")
def network(tiny: SimpleNamespace) -> SimpleNamespace:
    """``devices`` and ``serve``, with the tiny federation by default."""

    def devices(
        algorithm: Algorithm,
        root: Path,
        trainer: FederatedTrainer,
        settings: Federation | None = None,
        data: Callable[[], Digits] = tiny.data,
        **values: Any,
    ) -> dict[str, DeviceSession]:
        settings = settings or tiny.parties()
        return {
            name: open_device(
                name,
                algorithm=copy.deepcopy(algorithm),
                data=data(),
                federation=settings,
                trainer=trainer.settings,
                fabric=Fabric(accelerator="cpu", devices=1),
                folder=root / name,
                check=lambda: None,
                **values,
            )
            for name in settings.clients
        }

    def serve(
        algorithm: Algorithm,
        trainer: FederatedTrainer,
        wire: Wire,
        *,
        ckpt_path: str | None = None,
        data: Digits | None = None,
        settings: Federation | None = None,
        deadline: float | None = None,
        late: Late = "drop",
        scores: bool = False,
    ) -> dict[str, Any]:
        data = data or tiny.data()
        settings = settings or tiny.parties()
        run = trainer.open(algorithm, data, settings, ckpt_path, remote=True)

        def agreement(client: str) -> Agreement:
            return Agreement.of(
                client,
                edges=run.federation,
                data=data,
                algorithm=algorithm,
                trainer=trainer.settings,
                precision="32-true",
            )

        if scores:
            limits = trainer.settings.message_limits
            run.ask_scores = partial(ask_scores, run, wire, limits=limits, seconds=1.0)
        return trainer.train(
            run,
            lambda run, stop: NetworkLink(run, wire, agreement, stop.check, deadline, late),
        )

    return SimpleNamespace(devices=devices, serve=serve, wire=Wire)


@pytest.fixture
def federate(
    tiny: SimpleNamespace, network: SimpleNamespace, tmp_path: Path
) -> Callable[..., SimpleNamespace]:
    """Run FedAvg for two rounds; ``change`` gets the wire before they begin."""

    def call(
        change: Callable[[Any], None] = lambda wire: None,
        *,
        there: Algorithm | None = None,
        wire: Any = None,  # noqa: ANN401 - that of an earlier call
        rounds: int = ROUNDS,
        devices: dict[str, Any] | None = None,
        codec: Codec | None = None,
        check_val_every_n_rounds: int = 0,
        **served: Any,
    ) -> SimpleNamespace:
        own = FedAvg(steps=tiny.steps(warmup=1))
        trainer = tiny.trainer(
            tmp_path / "server",
            max_rounds=rounds,
            enable_checkpointing=True,
            codec=codec,
            check_val_every_n_rounds=check_val_every_n_rounds,
        )
        if wire is None:
            sessions = network.devices(
                there or own, tmp_path / "devices", trainer, **(devices or {})
            )
            wire = network.wire(sessions)
        change(wire)
        summary = network.serve(own, trainer, wire, **served)
        folder = tmp_path / "server" / "tiny" / "version_0"
        logs = {
            c: log.read_text()
            for c in wire.sessions
            if (log := folder / "clients" / c / "errors.log").exists()
        }
        return SimpleNamespace(
            wire=wire, events=summary["faults"]["events"], logs=logs, root=tmp_path / "server"
        )

    return call


def failures(run: SimpleNamespace) -> list[tuple[int, str, str, str]]:
    return [(e["round"], e["client"], e["kind"], e["stage"]) for e in run.events]
