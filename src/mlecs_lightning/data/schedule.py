"""How a client's private data change from round to round: the one place that says so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.errors import FaultList

__all__ = ["DomainStream", "Phase", "Schedule"]


class Phase(NamedTuple):
    """A stretch of rounds in which a client's data stay as they are.

    Attributes:
        start: Its first round; it lasts until the next phase begins.
        name: What it is called in metrics. Phases of one name must be equal views.
    """

    start: int
    name: str


class Schedule(ABC):
    """Maps (client, round) to a view of the samples that the client holds in all.

    The data module deals every client its pool once; a schedule says what of it the client sees in
    a round, and may mask modalities or choose rows. It holds settings and nothing that changes: a
    round's view is a function of client, round and seed, so that a resumed run sees what an
    unbroken one would have seen.
    """

    @abstractmethod
    def phases(self, client: str) -> tuple[Phase, ...]:
        """Return the phases of a client, in order of their first rounds; the first is round 0."""

    @abstractmethod
    def view(self, table: SampleTable, *, client: str, round: int, seed: int) -> SampleTable:
        """Return what a client sees in a round.

        Args:
            table: One split (train, val or test) of all that the client ever holds.
            client: The client.
            round: The round, from 0.
            seed: For whatever is drawn; a function of the data's seed, client and split, not of the
                round, so that phases of one name can be equal.
        """

    def resources(self, client: str, round: int) -> float:
        """Return what a client can spend in a round, as a multiple of its configured budget.

        Only algorithms that fit a model to its device (`ECLM`) look at it.
        """
        return 1.0

    def faults(self, held: Mapping[str, SampleTable]) -> list[str]:
        """Say what does not fit the clients; called when the data are dealt.

        Args:
            held: For each client all of its training samples.

        Returns:
            One line for each fault, naming the key and what is allowed.
        """
        return []

    def phase(self, client: str, round: int) -> Phase:
        """Return the phase of a client in a round."""
        return [phase for phase in self.phases(client) if phase.start <= round][-1]


class DomainStream(Schedule):
    """One domain after another: scenes of UR Fall, styles of digits, sites of a manifest.

    After the last domain the stream stays there. A domain may come back: name it twice.
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
            domains: The order of domains, one for all clients or one for each by name. A client
                that is not named sees all its samples in every round.
            rounds_per_domain: How many rounds a domain lasts.
            repeat: How many times the whole order is gone through.

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
        """Return the domains of a client, in order; empty if it has no stream."""
        own = self.domains.get(client, []) if isinstance(self.domains, dict) else self.domains
        return tuple(own) * self.repeat

    def phases(self, client: str) -> tuple[Phase, ...]:
        """Return a phase for each domain; one, ``all``, for a client without a stream."""
        order = self.order(client)
        if not order:
            return (Phase(0, "all"),)
        return tuple(Phase(i * self.rounds_per_domain, name) for i, name in enumerate(order))

    def view(self, table: SampleTable, *, client: str, round: int, seed: int) -> SampleTable:
        """Return the samples of the domain that it is the turn of."""
        if not self.order(client):
            return table
        domain = self.phase(client, round).name
        return table.select(np.flatnonzero(np.asarray(table.domains, dtype=str) == domain))

    def faults(self, held: Mapping[str, SampleTable]) -> list[str]:
        """Say which domains a client has no training samples of, and which clients there are not.

        A domain of too few recordings is one of them: validation may have taken the only one.
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
