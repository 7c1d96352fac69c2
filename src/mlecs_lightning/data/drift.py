"""Drift of clients: lost sensors, other scenes, another class mix, another budget."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from mlecs_lightning.data.schedule import Phase, Schedule
from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.errors import FaultList

__all__ = ["Drift", "Shift"]

_KEY = "data.init_args.schedule.init_args"


@dataclass(frozen=True)
class Shift:
    """A change of the data or the budget of some clients during some rounds.

    Attributes:
        start: First round of the change.
        end: First round after the change; ``None`` lasts until the end of the run.
        clients: The clients that change; all by default.
        lose: Modalities that become absent from every sample.
        domains: Keep only samples of these domains (scenes, writers, sites).
        class_mix: Concentration of the Dirichlet distribution from which each client's new class
            proportions are drawn; the smaller, the more skewed. Samples are left out until the
            proportions are met.
        budget: The device's budget, as a multiple of the configured one.
    """

    start: int = 0
    end: int | None = None
    clients: list[str] | None = None
    lose: list[str] | None = None
    domains: list[str] | None = None
    class_mix: float | None = None
    budget: float | None = None

    @property
    def name(self) -> str:
        """Name in metrics, made of what the shift changes."""
        parts = {
            "without": "+".join(self.lose or ()),
            "in": "+".join(self.domains or ()),
            "mix": "" if self.class_mix is None else f"{self.class_mix:g}",
            "budget": "" if self.budget is None else f"{self.budget:g}",
        }
        return ", ".join(f"{key} {value}" for key, value in parts.items() if value)

    def concerns(self, client: str, round: int) -> bool:
        """Return whether the shift is active for a client in a round."""
        ended = self.end is not None and round >= self.end
        return (
            (self.clients is None or client in self.clients) and self.start <= round and not ended
        )


class Drift(Schedule):
    """Shifts, each active in some rounds; those that are active together are applied in order."""

    def __init__(self, shifts: list[Shift], *, seed: int = 0) -> None:
        """Set the shifts.

        Args:
            shifts: What changes, when and for which clients.
            seed: Seed of the class proportions, separate from those of data and training.

        Raises:
            ValueError: If a shift ends before it starts, changes nothing, or has a value out of
                range.
        """
        faults = FaultList()
        for n, shift in enumerate(shifts):
            key = f"{_KEY}.shifts[{n}]"
            if shift.start < 0 or (shift.end is not None and shift.end <= shift.start):
                faults.append(
                    f"{key}: start must be at least 0 and end after it, got {shift.start} and "
                    f"{shift.end}"
                )
            if not shift.name:
                faults.append(f"{key} changes nothing; give lose, domains, class_mix or budget")
            for name in ("class_mix", "budget"):
                value = getattr(shift, name)
                if value is not None and not (value > 0 and math.isfinite(value)):
                    faults.append(f"{key}.{name} must be positive, got {value}")
        faults.raise_any()
        self.shifts = tuple(shifts)
        self.seed = seed

    def _active(self, client: str, round: int) -> list[Shift]:
        return [shift for shift in self.shifts if shift.concerns(client, round)]

    def phases(self, client: str) -> tuple[Phase, ...]:
        """Return a phase for each change of the active shifts; ``all`` where none is active."""
        edges = {0, *(s.start for s in self.shifts), *(s.end for s in self.shifts if s.end)}
        phases: list[Phase] = []
        for start in sorted(edges):
            name = " and ".join(shift.name for shift in self._active(client, start)) or "all"
            if not phases or phases[-1].name != name:
                phases.append(Phase(start, name))
        return tuple(phases)

    def view(self, table: SampleTable, *, client: str, round: int, seed: int) -> SampleTable:
        """Return a client's samples after the shifts of a round."""
        for shift in self._active(client, round):
            if shift.domains is not None:
                named = np.isin(np.asarray(table.domains, dtype=str), shift.domains)
                table = table.select(np.flatnonzero(named))
            if shift.lose is not None:
                keep = torch.tensor([m not in shift.lose for m in table.modalities])
                table = table.mask(keep.expand(len(table), -1))
                table = table.select(table.present.any(dim=1).nonzero().flatten().tolist())
            if shift.class_mix is not None:
                table = self._mixed(table, shift, client=client, seed=seed)
        return table

    def _mixed(self, table: SampleTable, shift: Shift, *, client: str, seed: int) -> SampleTable:
        """Leave out samples until the classes have the drawn proportions."""
        assert shift.class_mix is not None
        labels = table.labels.numpy()
        # The proportions depend on the client and not on the split, unlike the rows that are kept.
        own = zlib.crc32(f"{self.seed}/{client}/{shift.name}".encode())
        classes = int(labels.max(initial=-1)) + 1
        shares = np.random.default_rng(own).gamma(shift.class_mix, size=max(classes, 64))[:classes]
        shares = np.maximum(shares, 1e-12)  # a small `class_mix` draws zeros
        counts = np.bincount(labels, minlength=classes)
        there = counts > 0
        if not there.any():
            return table
        # As many samples as the scarcest class allows, but at least a tenth of the possible number.
        ratio = counts[there] / shares[there]
        size = max(float(ratio.min()), 0.1 * len(table) / float(shares[there].sum()))
        wanted = np.minimum(np.ceil(size * shares), counts).astype(int)
        rng = np.random.default_rng(seed)
        rows = [rng.permutation(np.flatnonzero(labels == c))[: wanted[c]] for c in range(classes)]
        return table.select(np.sort(np.concatenate(rows)))

    def resources(self, client: str, round: int) -> float:
        """Return the product of the budgets of the active shifts."""
        active = self._active(client, round)
        return math.prod(shift.budget for shift in active if shift.budget is not None)

    def faults(self, held: Mapping[str, SampleTable]) -> list[str]:
        """Report unknown clients and modalities, and phases that change or leave nothing."""
        modalities = sorted({m for table in held.values() for m in table.modalities})
        faults = []
        for n, shift in enumerate(self.shifts):
            key = f"{_KEY}.shifts[{n}]"
            for name in shift.clients or ():
                if name not in held:
                    faults.append(f"{key}.clients: there is no client {name!r}, only {list(held)}")
            for name in shift.lose or ():
                if name not in modalities:
                    faults.append(f"{key}.lose: no client has {name!r}, only {modalities}")
            own = [held[c] for c in held if shift.clients is None or c in shift.clients]
            if shift.class_mix is not None and own and all(_alike(table) for table in own):
                faults.append(
                    f"{key}.class_mix: all samples of its clients are of one class, so there is "
                    "nothing to mix; a Manifest has classes with data.init_args.labels"
                )
        for client, table in held.items():
            faults += self._empty_phases(client, table)
        return faults

    def _empty_phases(self, client: str, table: SampleTable) -> list[str]:
        return [
            f"{_KEY}.shifts: clients.{client} has no training samples from round {phase.start} on "
            f"({phase.name}); it holds {list(table.modalities)} in {sorted(set(table.domains))}"
            for phase in self.phases(client)
            if not len(self.view(table, client=client, round=phase.start, seed=0))
        ]


def _alike(table: SampleTable) -> bool:
    """Return whether all samples are of one class."""
    return len(set(table.labels.tolist())) < 2
