"""``mlecs serve``: the server of a run whose clients are devices on a network."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from mlecs_lightning.clients.settings import Federation
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.federated import FederatedTrainer
from mlecs_lightning.federated.run import Run
from mlecs_lightning.network.agreement import Agreement, public_digest
from mlecs_lightning.network.device import check_algorithm
from mlecs_lightning.network.envelope import Envelope
from mlecs_lightning.network.flower.transport import FlowerTransport
from mlecs_lightning.network.link import Late, NetworkLink, Transport
from mlecs_lightning.network.scores import ask_scores
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.rounds.signals import StopSignals
from mlecs_lightning.storage.paths import expanded

__all__ = ["check_late", "serve"]

_FAREWELL = 10.0
_TEST = 600.0
_POLL = 0.5
_HEADER = 2**20


def serve(
    self: FederatedTrainer,
    algorithm: Algorithm,
    datamodule: FederatedDataModule,
    federation: Federation,
    ckpt_path: str | None = None,
    host: str = "0.0.0.0",
    port: int = 9092,
    keys: str = "keys",
    deadline: float | None = None,
    late: Late = "drop",
    scores: bool = False,
    flower: str | None = None,
) -> dict[str, Any]:
    """Train a federation whose clients are devices on a network.

    The same run as ``fit``: only the server's data are needed here, and every device joins with
    ``mlecs join``.

    Args:
        self: The trainer.
        algorithm: The method.
        datamodule: The data, of which only the public samples need be here.
        federation: Server, edges and clients.
        ckpt_path: ``last``, ``best`` or a checkpoint file of ``serve`` to resume from.
        host: Address to listen on.
        port: Port to listen on.
        keys: Folder of the server's certificate and of the devices' public keys; see ``mlecs
            keys``.
        deadline: Seconds that a round waits for replies; by default it waits for every participant.
        late: What becomes of a reply that comes after the deadline: ``drop``, or ``next`` to count
            it in the next round that its client takes part in.
        scores: Whether to ask the devices, at the end, for their test scores. A device sends them
            if its ``allow`` names ``scores``.
        flower: Folder of Flower's programs; by default beside this Python, then on the PATH.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        ConfigurationError: If the settings do not fit together, or a key is missing.
    """
    check_algorithm(algorithm)
    if deadline is not None and not deadline > 0:
        raise ConfigurationError(f"--deadline must be above 0 seconds, got {deadline}")
    if not 0 < port < 2**16:
        raise ConfigurationError(f"--port must lie in [1, 65535], got {port}")
    if late == "next":
        check_late(deadline, private=self.settings.loop.privacy is not None)
    run = self.open(algorithm, datamodule, federation, ckpt_path, remote=True)
    if not self.is_global_zero:
        return self.train(run)  # the first process alone talks to the devices
    limit = self.settings.message_limits.max_bytes
    transport = FlowerTransport(
        run.federation.clients,
        host=host,
        port=port,
        keys=expanded(keys, key="--keys"),
        folder=run.folder.path / "flower",
        flower=None if flower is None else expanded(flower, key="--flower"),
        max_bytes=None if limit is None else limit + _HEADER,
    )
    precision = str(run.fabric.strategy.precision.precision)

    @cache
    def public(modalities: tuple[str, ...]) -> str:
        return public_digest(datamodule, modalities)

    @cache
    def agreement(client: str) -> Agreement:
        return Agreement.of(
            client,
            public=public,
            edges=run.federation,
            data=datamodule,
            algorithm=algorithm,
            trainer=self.settings,
            precision=precision,
        )

    def link(run: Run, stop: StopSignals) -> NetworkLink:
        return NetworkLink(run, transport, agreement, stop.check, deadline, late)

    if scores:
        run.ask_scores = partial(
            ask_scores,
            run,
            transport,
            limits=self.settings.message_limits,
            seconds=_TEST if deadline is None else deadline,
        )
    try:
        summary = self.train(run, link)
        say_goodbye(transport, run.federation.last_round)
    finally:
        transport.close()
    return summary


def check_late(deadline: float | None, *, private: bool) -> None:
    """Refuse to use late replies where there are none, or none may count.

    Raises:
        ConfigurationError: If there is no deadline, or differential privacy.
    """
    if deadline is None:
        raise ConfigurationError(
            "--late next: no reply is late without --deadline SECONDS, which must be given"
        )
    if private:
        raise ConfigurationError(
            "--late next: under trainer.privacy a round counts the updates of its own participants "
            "alone; use --late drop"
        )


def say_goodbye(transport: Transport, last_round: Callable[[str], int | None]) -> None:
    """Tell the devices that the run has ended, and wait a little until they have heard it.

    Args:
        transport: To the devices.
        last_round: Returns the last round of a client that counts.
    """
    waiting = set()
    for client in transport.online():
        end = Envelope("end", {"client": client, "last": last_round(client)})
        waiting.add(transport.send(client, end.to_bytes()))
    start = time.monotonic()
    while waiting and time.monotonic() - start < _FAREWELL:
        waiting -= {arrival.ticket for arrival in transport.receive(_POLL)}
