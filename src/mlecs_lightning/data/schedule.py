"""Schedules: how a client's private data change over the rounds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.errors import FaultList

__all__ = ["DomainStream", "Phase", "Schedule"]


class Phase(NamedTuple):
    """Consecutive rounds in which a client's data do not change.

    Attributes:
        start: First round; the phase lasts until the next one begins.
        name: Its name in metrics. Phases with the same name must show the same samples.
    """

    start: int
    name: str


class Schedule(ABC):
    """Base class of schedules: what a client sees of its samples in each round.

    The data module deals every client its samples once; a schedule selects rows of them, or masks
    modalities, round by round. It holds settings and no state: a view depends on client, round and
    seed only, so that a resumed run sees the same samples as an uninterrupted one.
    """

    @abstractmethod
    def phases(self, client: str) -> tuple[Phase, ...]:
        """Return the phases of a client in order; the first one starts in round 0."""

    @abstractmethod
    def view(self, table: SampleTable, *, client: str, round: int, seed: int) -> SampleTable:
        """Return what a client sees in a round.

        Args:
            table: One split (train, val or test) of all samples that the client ever holds.
            client: The client.
            round: The round, from 0.
            seed: Seed of random choices. It depends on the seed of the data, the client and the
                split, but not on the round, so that phases with the same name can be equal.
        """

    def resources(self, client: str, round: int) -> float:
        """Return a client's budget in a round, as a multiple of the configured one.

        Used only by algorithms that fit a model to its device, such as `ECLM`.
        """
        return 1.0

    def faults(self, held: Mapping[str, SampleTable]) -> list[str]:
        """Check the schedule against the clients; called when the samples are dealt.

        Args:
            held: All training samples of each client.

        Returns:
            One message for each fault, with the key and the allowed values.
        """
        return []

    def phase(self, client: str, round: int) -> Phase:
        """Return the phase of a client in a round."""
        return [phase for phase in self.phases(client) if phase.start <= round][-1]


class DomainStream(Schedule):
    """One domain after another: scenes of UR Fall, styles of digits, sites of a manifest.

    The last domain lasts until the end of the run. A domain that is named twice comes back.
    """

    def __init__(
        self,
        domains: list[str] | dict[str, list[str]],
        *,
        rounds_per_domain: int = 1,
        repeat: int = 1,
    ) -> None:
        """Set the order.

        Args:
            domains: The order of the domains: one list for all clients, or a list for each client
                by name. A client that is not named sees all its samples in every round.
            rounds_per_domain: Number of rounds that each domain lasts.
            repeat: Number of times that the list is repeated.

        Raises:
            ValueError: If there are no domains, or a number is below 1.
        """
        faults, key = FaultList(), "data.init_args.schedule.init_args"
        orders = domains if isinstance(domains, dict) else {"": domains}
        empty = [client or "all" for client, order in orders.items() if not order]
        if not orders or empty:
            faults.append(f"{key}.domains: name at least one domain, got {domains}")
        if min(rounds_per_domain, repeat) < 1:
            faults.append(
                f"{key}: rounds_per_domain and repeat must be at least 1, got {rounds_per_domain} "
                f"and {repeat}"
            )
        faults.raise_any()
        self.domains = domains
        self.rounds_per_domain = rounds_per_domain
        self.repeat = repeat

    def order(self, client: str) -> tuple[str, ...]:
        """Return the domains of a client in order; empty if none are set for it."""
        own = self.domains.get(client, []) if isinstance(self.domains, dict) else self.domains
        return tuple(own) * self.repeat

    def phases(self, client: str) -> tuple[Phase, ...]:
        """Return a phase for each domain; a client without domains has the single phase ``all``."""
        order = self.order(client)
        if not order:
            return (Phase(0, "all"),)
        return tuple(Phase(i * self.rounds_per_domain, name) for i, name in enumerate(order))

    def view(self, table: SampleTable, *, client: str, round: int, seed: int) -> SampleTable:
        """Return the samples of the domain of this round."""
        if not self.order(client):
            return table
        domain = self.phase(client, round).name
        return table.select(np.flatnonzero(np.asarray(table.domains, dtype=str) == domain))

    def faults(self, held: Mapping[str, SampleTable]) -> list[str]:
        """Report unknown clients, and domains that a client has no training samples of.

        These include domains with a single recording, if validation has taken it.
        """
        key = "data.init_args.schedule.init_args.domains"
        named: Iterable[str] = self.domains if isinstance(self.domains, dict) else ()
        faults = [
            f"{key}: there is no client {c!r}, only {list(held)}" for c in named if c not in held
        ]
        for client, table in held.items():
            has = set(table.domains)
            faults += [
                f"{key}: clients.{client} has no training samples of {domain!r}, only of "
                f"{sorted(has)}"
                for domain in dict.fromkeys(self.order(client))
                if domain not in has
            ]
        return faults
