"""Who gets which samples of the private pool and of the test pool."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np

from mlecs_lightning.data.partition import (
    dirichlet_proportions,
    partition_by_domain,
    partition_dirichlet,
)
from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.types import ClientProfile

__all__ = ["Partition", "Rows", "client_faults", "deal"]

Partition = Literal["domain", "dirichlet"]

Rows = dict[str, np.ndarray]
"""For each client the indices of its samples in a pool, ascending."""


def client_faults(
    clients: Mapping[str, ClientProfile], modalities: Collection[str], *, partition: Partition
) -> list[str]:
    """Say which clients name what the data do not have, or what the partition ignores.

    Args:
        clients: The clients, by name.
        modalities: Those of the data.
        partition: How the private pool is dealt.
    """
    faults = []
    for name, profile in clients.items():
        key = f"clients.{name}.modalities"
        if not profile.modalities:
            faults.append(f"{key} is empty: name at least one of {list(modalities)}")
        faults += [
            f"{key}: {m!r} is none of {list(modalities)}"
            for m in profile.modalities
            if m not in modalities
        ]
        if len(set(profile.modalities)) < len(profile.modalities):
            faults.append(f"{key}: {list(profile.modalities)} names one twice")
        if profile.domains is not None and partition != "domain":
            faults.append(
                f"clients.{name}.domains goes with data.init_args.partition: domain only, got "
                f"{partition!r}"
            )
    return faults


def deal(
    private: SampleTable,
    test: SampleTable,
    clients: Mapping[str, ClientProfile],
    *,
    partition: Partition,
    classes: int,
    alpha: float,
    seed: int,
) -> tuple[Rows, Rows]:
    """Return the rows of both pools that each client holds.

    Args:
        private: What is dealt to train on.
        test: Under ``domain`` a client's own test is all of it that is of a domain that the client
            holds samples of; under ``dirichlet`` it is dealt with the same proportions.
        clients: The clients, by name.
        partition: ``domain`` or ``dirichlet``.
        classes: Number of classes.
        alpha: Concentration of the label skew.
        seed: Seed of the draw.

    Raises:
        ValueError: If domains do not exist, or a client ends up without private samples; one line
            for each fault.
    """
    names = list(clients)
    if partition == "dirichlet":
        table = dirichlet_proportions(classes, len(names), alpha=alpha, seed=seed)
        train, own = (
            partition_dirichlet(pool.labels.numpy(), names, proportions=table, seed=seed + n)
            for n, pool in enumerate((private, test), start=1)
        )
    else:
        wanted = {name: profile.domains for name, profile in clients.items()}
        train = partition_by_domain(private.domains, private.groups, wanted=wanted)
        domains = np.asarray(test.domains)
        own = {
            name: np.flatnonzero(np.isin(domains, sorted({private.domains[i] for i in rows})))
            for name, rows in train.items()
        }
    empty = [name for name, rows in train.items() if len(rows) == 0]
    if empty:
        raise ValueError(
            "\n".join(
                f"clients.{name} has an empty private split: give it other `domains`, use fewer "
                "clients, or raise data.init_args.alpha"
                for name in empty
            )
        )
    return train, own
