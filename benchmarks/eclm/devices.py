"""Many devices with a few classes each: Digits dealt out as in Nebula, budgets of real devices."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mlecs_lightning.algorithms.eclm.derivation import Budget
from mlecs_lightning.clients import ClientSettings
from mlecs_lightning.data import Digits, SampleTable
from mlecs_lightning.data.base import Split
from mlecs_lightning.rounds.participation import sample_clients
from mlecs_lightning.types import ClientProfile


class Machine(NamedTuple):
    """A device on the market.

    Attributes:
        memory_gib: Memory.
        gflops: Peak of the processor in float32: cores x clock x operations of a core in a cycle,
            or the maker's figure for its GPU.
    """

    memory_gib: float
    gflops: float


MACHINES = {
    "Raspberry Pi Zero 2 W": Machine(0.5, 4 * 1.0 * 8),  # Cortex-A53
    "Raspberry Pi 3 B+": Machine(1.0, 4 * 1.4 * 8),  # Cortex-A53
    "Raspberry Pi 4": Machine(4.0, 4 * 1.5 * 16),  # Cortex-A72
    "Raspberry Pi 5": Machine(8.0, 4 * 2.4 * 16),  # Cortex-A76
    "Jetson Nano": Machine(4.0, 236.0),
    "Jetson Orin Nano": Machine(8.0, 1280.0),
}


def budget_of(client: str, *, modules: int) -> Budget:
    """Return the budget of a device, whose machine is drawn by its name.

    The largest machine holds all modules. The share of the others is the square root of their
    memory or speed relative to it, whichever is less (our choice: the MLPs are but a part of what
    a device holds and computes), and at least one module of each layer.
    """
    names = list(MACHINES)
    machine = MACHINES[names[zlib.crc32(f"machine/{client}".encode()) % len(names)]]
    most = Machine(*(max(column) for column in zip(*MACHINES.values(), strict=True)))
    share = min(machine.memory_gib / most.memory_gib, machine.gflops / most.gflops) ** 0.5
    return Budget(modules=max(share, 1 / modules))


def named(count: int) -> dict[str, ClientSettings]:
    """Return devices that have all sensors."""
    digits = ["pixels", "profile", "fourier"]
    return {f"device-{n:03d}": ClientSettings(digits) for n in range(count)}


class ManyDevices(Digits):
    """Digits on any number of devices, each with ``classes`` of the ten and 50 to 150 samples.

    Digits has 1,797 samples: 30 % of what is not held out for testing is the cloud's, 70 % is the
    devices' (as in Nebula). A device draws its samples from the latter without knowing of the
    others, so that devices share samples. From step to step one of its classes is replaced by
    another, and half of its samples by fresh ones of its present classes (Nebula replaces half of
    the data; that the classes change is our choice). It is judged on samples with the mix of
    classes that it holds: of the test pool, or, to choose settings, of a part of the private pool
    that no device trains on.

    Only the devices of a round have validation samples in it, so that these alone are judged.
    """

    def __init__(
        self,
        *,
        classes: int = 3,
        samples: tuple[int, int] = (50, 150),
        rounds_per_step: int = 10,
        fraction: float = 0.1,
        run_seed: int = 0,
        judged_on: Split = "test",
        judged: int = 24,
        **kwargs: Any,
    ) -> None:
        """Set the devices' data.

        Args:
            classes: Number of classes of a device.
            samples: Minimum and maximum number of samples of a device.
            rounds_per_step: Rounds after which half of a device's data is replaced.
            fraction: Fraction of the devices in a round, as in `Participation`.
            run_seed: Base seed of the run, of which the devices of a round are a function.
            judged_on: ``test``, or ``val`` for the held-out part of the private pool.
            judged: Number of samples that a device is judged on.
            **kwargs: See `Digits`.
        """
        super().__init__(public_fraction=0.24, test_fraction=0.2, **kwargs)
        self.per_device, self.samples, self.rounds_per_step = classes, samples, rounds_per_step
        self.fraction, self.run_seed = fraction, run_seed
        self.judged_on, self.judged = judged_on, judged
        self._names: tuple[str, ...] = ()
        self._drawn: dict[tuple[str, int], np.ndarray] = {}

    def attach(self, clients: Mapping[str, ClientProfile]) -> None:
        """See `FederatedDataModule`; nothing is dealt, devices draw."""
        self.setup()
        self._names = tuple(clients)
        rows = np.random.default_rng(self.seed).permutation(len(self.pools.private))
        held = len(rows) // 5
        self._held, self._kept = np.sort(rows[:held]), np.sort(rows[held:])

    def _rng(self, client: str, purpose: str) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(f"{self.seed}/{client}/{purpose}".encode()))

    def classes_of(self, client: str, step: int) -> list[int]:
        """Return the classes of a device in a step: those of the last one, but for the first."""
        order = self._rng(client, "classes").permutation(len(self.classes))
        return [int(order[(step + n) % len(order)]) for n in range(self.per_device)]

    def rows(self, client: str, step: int) -> np.ndarray:
        """Return the rows of the private pool that a device holds in a step."""
        if (client, step) not in self._drawn:
            rng = self._rng(client, f"step {step}")
            labels = self.pools.private.labels.numpy()
            fits = self._kept[np.isin(labels[self._kept], self.classes_of(client, step))]
            size = int(self._rng(client, "samples").integers(*self.samples, endpoint=True))
            fresh = size if step == 0 else size // 2
            drawn = rng.choice(fits, size=fresh, replace=fresh > len(fits))
            old = rng.permutation(self.rows(client, step - 1))[fresh:] if step else drawn[:0]
            self._drawn[client, step] = np.sort(np.concatenate([old, drawn]))
        return self._drawn[client, step]

    def private(
        self, client: str, split: Split = "train", *, round: int | None = None
    ) -> SampleTable:
        """See `FederatedDataModule`."""
        step = 0 if round is None else round // self.rounds_per_step
        own = self.pools.private.select(self.rows(client, step))
        if split == "train":
            return own
        if split == "val" and round is not None:
            seed, fraction = self.run_seed, self.fraction
            if client not in sample_clients(self._names, fraction, seed=seed, round=round):
                return own.select([])
        pool = self.pools.test if self.judged_on == "test" else self.pools.private
        there = np.arange(len(pool)) if self.judged_on == "test" else self._held
        labels, rng = pool.labels.numpy()[there], self._rng(client, f"judged {step}")
        share = np.bincount(own.labels.numpy(), minlength=10) / len(own)
        weight = share[labels] / np.bincount(labels, minlength=10)[labels]
        size = min(self.judged, int((weight > 0).sum()))
        return pool.select(rng.choice(there, size=size, replace=False, p=weight / weight.sum()))
