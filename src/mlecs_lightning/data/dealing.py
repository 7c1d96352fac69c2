"""Deals the private pool and the test pool to the clients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Literal

import numpy as np
import torch

from mlecs_lightning.data.partition import (
    dirichlet_proportions,
    partition_by_domain,
    partition_dirichlet,
    split_groups,
)
from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.types import ClientProfile

__all__ = ["Partition", "Rows", "client_faults", "deal", "hold_out", "pooled"]

Partition = Literal["domain", "dirichlet"]

Rows = dict[str, np.ndarray]
"""The indices of each client's samples in a pool, ascending."""


def client_faults(
    clients: Mapping[str, ClientProfile], modalities: Collection[str], *, partition: Partition
) -> list[str]:
    """Check the modalities and domains that clients name.

    Args:
        clients: The clients, by name.
        modalities: The modalities of the data set.
        partition: How the private pool is dealt.

    Returns:
        One message for each modality that is missing, unknown or repeated, and for domains that the
        partition ignores.
    """
    faults = []
    for name, profile in clients.items():
        key = f"clients.{name}.modalities"
        if not profile.modalities:
            faults.append(f"{key} is empty: name at least one of {list(modalities)}")
        faults += [
            f"{key}: {m!r} is not one of {list(modalities)}"
            for m in profile.modalities
            if m not in modalities
        ]
        if len(set(profile.modalities)) < len(profile.modalities):
            faults.append(f"{key}: {list(profile.modalities)} names a modality twice")
        if profile.domains is not None and partition != "domain":
            faults.append(
                f"clients.{name}.domains needs data.init_args.partition: domain, got {partition!r}"
            )
    return faults


def deal(
    private: SampleTable,
    test: SampleTable,
    clients: Mapping[str, ClientProfile],
    *,
    held: Collection[str] | None = None,
    partition: Partition,
    classes: int,
    alpha: float,
    seed: int,
) -> tuple[Rows, Rows]:
    """Return the rows of both pools that each client holds.

    Args:
        private: The training samples to deal.
        test: The test samples. With ``domain``, a client gets those of all domains that it holds
            training samples of; with ``dirichlet``, they are dealt in the same proportions.
        clients: The clients, by name.
        held: The clients whose samples are wanted; by default all. The pools need not have the
            samples of others, unless the draw depends on them: with ``dirichlet``, or if one of
            these clients names no domains.
        partition: ``domain`` or ``dirichlet``.
        classes: Number of classes.
        alpha: Concentration of the Dirichlet label skew.
        seed: Seed of the draw.

    Raises:
        ValueError: If a domain does not exist, or a client gets no private samples; one line for
            each fault.
    """
    if held is not None and not held:
        return {}, {}
    if held is not None and partition == "domain":
        own = {name: clients[name] for name in clients if name in held}
        clients = own if all(p.domains is not None for p in own.values()) else clients
    names = list(clients)
    if partition == "dirichlet":
        table = dirichlet_proportions(classes, len(names), alpha=alpha, seed=seed)
        train, test_rows = (
            partition_dirichlet(pool.labels.numpy(), names, proportions=table, seed=seed + n)
            for n, pool in enumerate((private, test), start=1)
        )
    else:
        wanted = {name: profile.domains for name, profile in clients.items()}
        train = partition_by_domain(private.domains, private.groups, wanted=wanted)
        test_rows = {}
        for name, rows in train.items():
            domains = sorted({private.domains[i] for i in rows})
            test_rows[name] = np.flatnonzero(np.isin(np.asarray(test.domains), domains))
    if held is not None:
        train = {name: rows for name, rows in train.items() if name in held}
    empty = [name for name, rows in train.items() if len(rows) == 0]
    if empty:
        raise ValueError(
            "\n".join(
                f"clients.{name} has no private samples: give it other `domains`, use fewer "
                "clients, or raise data.init_args.alpha"
                for name in empty
            )
        )
    return train, test_rows


def hold_out(
    private: SampleTable,
    rows: Rows,
    fraction: float,
    *,
    partition: Partition,
    seed_of: Callable[[str], int],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split the rows of each client into those for training and those for validation.

    Each client holds out recordings of its own. With ``dirichlet`` several clients may have samples
    of one recording: then the recordings are chosen once for all, so that nobody trains on what
    another one is validated on.

    Args:
        private: The pool.
        rows: The rows of each client.
        fraction: Fraction of the recordings that is held out.
        partition: How the pool was dealt.
        seed_of: Returns the seed of a client's own choice; with an empty name, that of all.

    Raises:
        ValueError: If a client has nothing left to train on; one line for each.
    """
    shared = partition == "dirichlet" and len(set(private.groups)) < len(private.groups)
    _, common = split_groups(private.groups if shared else (), fraction, seed=seed_of(""))
    split = {}
    for name, own in rows.items():
        if shared:
            held = np.isin(own, common)
            split[name] = own[~held], own[held]
        else:
            groups = [private.groups[i] for i in own]
            train, val = split_groups(groups, fraction, seed=seed_of(name))
            split[name] = own[train], own[val]
    if empty := [name for name, (train, _) in split.items() if not len(train)]:
        raise ValueError(
            "\n".join(
                f"clients.{name}: all of its recordings are held out for validation: lower "
                "data.init_args.val_fraction, or raise data.init_args.alpha"
                for name in empty
            )
        )
    return split


def pooled(pool: SampleTable, held: Iterable[SampleTable]) -> SampleTable:
    """Return the samples of a pool that clients hold, each with what its client sees of it.

    Args:
        pool: The pool.
        held: The samples of each client; all are in the pool.
    """
    row = {sample: i for i, sample in enumerate(pool.ids)}
    keep = torch.zeros_like(pool.present)
    for own in held:
        rows = [row[sample] for sample in own.ids]
        for k, modality in enumerate(pool.modalities):
            if modality in own.modalities:
                keep[rows, k] = own.present[:, own.modalities.index(modality)]
    return pool.mask(keep).select(keep.any(dim=1).nonzero().flatten().tolist())
