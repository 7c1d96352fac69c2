"""Builds a device: the model of one client, its data and its states, and nothing of the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from pathlib import Path

from lightning.fabric import Fabric

from mlecs_lightning.clients.backbones import check_lengths, make_pockets
from mlecs_lightning.clients.edges import Edges
from mlecs_lightning.clients.parties import Parties
from mlecs_lightning.clients.settings import Federation
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.evaluation.parties import Evaluator
from mlecs_lightning.extras import require
from mlecs_lightning.federated.exchange.coverage import accountant_of
from mlecs_lightning.federated.exchange.device import Device
from mlecs_lightning.federated.settings import TrainerSettings
from mlecs_lightning.metrics import ROUGE
from mlecs_lightning.network.agreement import Agreement
from mlecs_lightning.network.session import DeviceSession
from mlecs_lightning.network.store import DeviceStore
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.wire.channel import Channel

__all__ = ["check_algorithm", "open_device"]

log = logging.getLogger(__name__)


def check_algorithm(algorithm: Algorithm) -> None:
    """Refuse a method that has no place on a network.

    Raises:
        ConfigurationError: If it pools the private data, or exchanges nothing.
    """
    name = type(algorithm).__name__
    if algorithm.pools_private:
        raise ConfigurationError(
            f"algorithm: {name} pools the private data of all clients, which stay on the devices "
            "here; run it as a simulation, with `mlecs fit`"
        )
    if not algorithm.communicates:
        raise ConfigurationError(
            f"algorithm: {name} exchanges nothing, so there is nothing to serve; run it as a "
            "simulation, with `mlecs fit`"
        )


def open_device(
    client: str,
    *,
    algorithm: Algorithm,
    data: FederatedDataModule,
    federation: Federation,
    trainer: TrainerSettings,
    fabric: Fabric,
    folder: Path,
    check: Callable[[], None],
    allow: Collection[str] | None = None,
) -> DeviceSession:
    """Build a device.

    Args:
        client: The client that it is.
        algorithm: The method.
        data: The data set, of which only the public and this client's samples need be here.
        federation: Settings of the parties.
        trainer: Settings of the trainer.
        fabric: Where the device trains; launched.
        folder: Holds its states and its log of errors.
        check: Raises an exception if a signal has asked to stop.
        allow: What may leave the device, see `DeviceSession`.

    Raises:
        ConfigurationError: If the settings do not fit together, there is no such client, or a
            package is missing that method or data need.
    """
    check_algorithm(algorithm)
    require(*data.needs(), *algorithm.needs())
    names = tuple(federation.named_clients(data.modalities))
    if client not in names:
        raise ConfigurationError(f"--client: there is no client {client!r}, only {list(names)}")
    data.held = (client,)
    parties = Parties.resolve(federation, algorithm, data).only(client)
    make_pockets(parties, data, server=False)
    check_lengths(parties, data, algorithm, server=False)
    edges = Edges(
        parties,
        data,
        fabric=fabric,
        gradient_clip_val=trainer.gradient_clip_val,
        algorithm=algorithm,
    )
    edges.prepare_edges(algorithm)
    edges.keep_initial()
    store = DeviceStore(folder / "states", client)
    edges.store = store
    channel = Channel(trainer.message_limits, codec=trainer.codec)
    device = Device(
        algorithm,
        data,
        edges,
        channel,
        trainer.loop.limit_train,
        check,
        _notes(folder),
        accountant_of(trainer.loop, parties.groups.values()),
    )
    agreement = Agreement.of(
        client,
        edges=edges,
        data=data,
        algorithm=algorithm,
        trainer=trainer,
        precision=str(fabric.strategy.precision.precision),
    )
    return DeviceSession(
        client,
        device,
        store,
        agreement,
        trainer.message_limits,
        _evaluator(data, fabric, trainer),
        allow,
        trainer.loop.faults,
    )


def _evaluator(data: FederatedDataModule, fabric: Fabric, trainer: TrainerSettings) -> Evaluator:
    """Return what tests the client; without ROUGE, and a note, where its package is missing."""
    rouge = trainer.rouge
    if rouge and ROUGE.missing():
        # Nobody's scores are compared with these, so a device may do without.
        log.warning("the test is without ROUGE-Lsum, which the extra %r installs", ROUGE.extra)
        rouge = False
    return Evaluator(
        data, fabric=fabric, bertscore=False, limit=trainer.limit_test_batches, rouge=rouge
    )


def _notes(folder: Path) -> Callable[[str, str], None]:
    """Return a function that appends to the device's own log of errors."""

    def note(client: str, text: str) -> None:
        path = folder / "errors.log"
        try:
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError as error:
            log.warning("%s cannot be written: %s", path, error.strerror)

    return note
