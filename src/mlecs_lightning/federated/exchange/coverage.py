"""What differential privacy covers: refuses settings and messages whose privacy nobody counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlecs_lightning.callbacks import FederatedCallback
from mlecs_lightning.clients.federation import FederationModels
from mlecs_lightning.clients.parties import Parties
from mlecs_lightning.errors import FaultList
from mlecs_lightning.rounds.accounting import Accountant
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.rounds.participation import LoopSettings
from mlecs_lightning.wire.messages import Schema, component_of

__all__ = ["accountant_of", "check_coverage", "check_privacy", "check_stopping", "uncovered"]

_COVERED = ("adapter",)


def uncovered(schema: Schema) -> list[str]:
    """Return the parts of a client's messages that clipping and noise do not cover.

    Covered are the tensors of the adapter. A scalar that is declared to have one value says nothing
    and needs no cover.

    Returns:
        Names of components and scalars, sorted.
    """
    parts = {component_of(name) for name in (*schema.tensors, *schema.optional)}
    open_scalars = {name for name, form in schema.scalars.items() if form.equal is None}
    return sorted(parts.difference(_COVERED) | open_scalars)


def check_privacy(
    parties: Parties, algorithm: Algorithm, loop: LoopSettings, *, coded: bool
) -> None:
    """Check the settings that ``trainer.privacy`` depends on, before anything is built.

    Args:
        parties: The checked settings of all parties.
        algorithm: The method.
        loop: The settings of the rounds.
        coded: Whether there is a codec.

    Raises:
        ConfigurationError: If the guarantee would not hold; one message with all reasons.
    """
    privacy = loop.privacy
    if privacy is None:
        return
    faults, name = FaultList(), type(algorithm).__name__
    if not algorithm.communicates:
        faults.append(f"trainer.privacy: clients of {name} send nothing that could be protected")
    elif algorithm.pools_private:
        faults.append(f"trainer.privacy: {name} gives all private data to every party")
    if not privacy.delta < 1 / len(parties.profiles):
        faults.append(
            f"trainer.privacy.delta is {privacy.delta}, allowed: below 1/{len(parties.profiles)}, "
            "one over the number of clients. A larger one permits to publish a client's update"
        )
    if loop.update_limits.max_ratio is not None:
        faults.append(
            f"trainer.update_limits.max_ratio is {loop.update_limits.max_ratio}: it compares a "
            "client with the others, which trainer.privacy does not cover; set it to null, "
            "trainer.privacy.clip is the limit"
        )
    if loop.participation.min_clients > 1:
        faults.append(
            f"trainer.participation.min_clients is {loop.participation.min_clients}: whether a "
            "round counts would tell how many clients took part, which trainer.privacy does not "
            "cover; allowed: 0 or 1"
        )
    if coded:
        faults.append(
            "trainer.codec: a codec keeps what earlier messages left out and sends it later, which "
            "trainer.privacy does not cover; leave one of the two out"
        )
    faults.raise_any()


def check_coverage(federation: FederationModels, algorithm: Algorithm) -> None:
    """Check the form of all messages, which needs the models.

    Raises:
        ConfigurationError: If clients send what is not covered, or adapters that cannot be added.
    """
    faults, name = FaultList(), type(algorithm).__name__
    faults += [f"trainer.privacy: {name}: {fault}" for fault in algorithm.privacy_faults()]
    sent = {client: algorithm.uplink(federation.module(client)) for client in federation.clients}
    parts = sorted({part for schema in sent.values() for part in uncovered(schema)})
    if parts:
        faults.append(
            f"trainer.privacy: clients of {name} send {', '.join(parts)}, which clipping and noise "
            f"do not cover; covered: {', '.join(_COVERED)}"
        )
    for client, schema in sent.items():
        known = algorithm.downlink(federation.module(client)).tensors
        new = [key for key, form in schema.tensors.items() if known.get(key) != form]
        if new and not parts:
            faults.append(
                f"trainer.privacy: clients.{client} sends {new} without having received it, so it "
                "has no change that could be clipped"
            )
        if schema.optional and not parts:
            faults.append(
                f"trainer.privacy: clients.{client} may leave out {sorted(schema.optional)}, and "
                "which it sends would tell; allowed: tensors that are always sent"
            )
    for first, *others in federation.parties.groups.values():
        faults += [
            f"clients.{other}.lora makes another adapter than that of clients.{first}; "
            "trainer.privacy needs equal ones"
            for other in others
            if sent[other].tensors != sent[first].tensors
        ]
    faults.raise_any()


def check_stopping(loop: LoopSettings, callbacks: Iterable[FederatedCallback]) -> None:
    """Check that no callback ends the run by what only the clients know.

    Raises:
        ConfigurationError: If one does.
    """
    faults = FaultList()
    for callback in callbacks if loop.privacy is not None else ():
        stops = type(callback).should_stop is not FederatedCallback.should_stop
        monitor = getattr(callback, "monitor", "")
        if stops and not monitor.startswith("server/"):
            faults.append(
                f"trainer.callbacks: {type(callback).__name__} may stop the run by the value "
                f"{monitor!r}, which trainer.privacy does not cover; allowed: a monitor of the "
                "server, such as server/val/loss"
            )
    faults.raise_any()


def accountant_of(loop: LoopSettings, groups: Iterable[Sequence[str]]) -> Accountant | None:
    """Return the accountant of a run; ``None`` without ``trainer.privacy``."""
    if loop.privacy is None:
        return None
    return Accountant(loop.privacy, loop.participation.fraction, groups)
