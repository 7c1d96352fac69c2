"""The server's public samples: their validation split, hidden targets, and what they lack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlecs_lightning.data.partition import split_groups
from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.errors import ConfigurationError, FaultList

__all__ = [
    "Labelled",
    "PretrainOn",
    "Without",
    "check_without",
    "labelled_faults",
    "lacking",
    "partly_labelled",
    "split_public",
]

Labelled = float | dict[str, float]
"""Fraction of the public recordings with a target: one for all, or one for each class or domain."""

PretrainOn = Literal["public", "other", "targets"]
"""What a pocket model learns before round 0.

``targets``: every sentence that a target can be, as far as the data set knows them beforehand, so
LoRA has no sentence left to learn. ``public``: the targets of the public samples alone. ``other``:
the words of these in alphabetical order, so the model knows the words and LoRA has to learn the
sentences. A model that reads texts as tokens learns from texts and targets of public samples:
with ``public`` what a target repeats of its own sample, with ``other`` to copy alone. Our choice.
"""

_LABELLED = "data.init_args.public_labelled"
_WITHOUT = "data.init_args.public_without"


@dataclass(frozen=True)
class Without:
    """Classes and domains that the public samples lack, so that only clients know them.

    Attributes:
        classes: Names of classes. A sample without a target has no known class, and stays.
        domains: Names of domains.
    """

    classes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()


def split_public(
    public: SampleTable, val_fraction: float, *, seed: int
) -> tuple[SampleTable, SampleTable]:
    """Split the public samples into those for training, and labelled ones for validation.

    Args:
        public: The public samples; some may have no target.
        val_fraction: Fraction of the recordings with a target that is held out.
        seed: Seed of the choice.
    """
    labelled = {g for g, t in zip(public.groups, public.targets, strict=True) if t}
    names = [group for group in public.groups if group in labelled]
    _, held = split_groups(names, val_fraction, seed=seed)
    is_held = np.isin(np.asarray(public.groups), sorted({names[i] for i in held}))
    val = public.select(np.flatnonzero(is_held))
    known = val.labelled().nonzero().flatten().tolist()
    return public.select(np.flatnonzero(~is_held)), val.select(known)


# Hidden targets -----------------------------------------------------------------------------------


def labelled_faults(labelled: Labelled) -> list[str]:
    """Check the range of the fractions."""
    if not isinstance(labelled, dict):
        ok = 0 < labelled <= 1
        return [] if ok else [f"{_LABELLED} must be in (0, 1], got {labelled}"]
    faults = [] if labelled else [f"{_LABELLED} names no class or domain: give a number"]
    faults += [
        f"{_LABELLED}.{name} must be in [0, 1], got {fraction}"
        for name, fraction in labelled.items()
        if not 0 <= fraction <= 1
    ]
    return faults


def partly_labelled(
    table: SampleTable, labelled: Labelled, *, seed: int, classes: Sequence[str] = ()
) -> SampleTable:
    """Remove the targets of all recordings except for a fraction of them.

    Args:
        table: The samples.
        labelled: Fraction of the recordings with a target that keep it, in (0, 1]; or such a
            fraction, in [0, 1], for each class or domain by name. All others keep their targets,
            and a sample whose class and domain are both named keeps its target only if both
            fractions keep it. Of a class, a recording loses the samples of this class and no
            others.
        seed: Seed of the choice.
        classes: Names of the classes of ``table.labels``.

    Raises:
        ConfigurationError: If a name is neither a class nor a domain, or is both, or if no target
            is left.
    """
    faults, unknown = FaultList(), set[int]()
    if isinstance(labelled, dict):
        for name, fraction in labelled.items():
            rows = faults.attempt(_rows_of, table, name, classes)
            if rows is not None:
                unknown |= _unlabelled(table, rows, fraction, seed=seed)
    else:
        rows = table.labelled().nonzero().flatten().tolist()
        unknown = _unlabelled(table, rows, labelled, seed=seed)
    faults.raise_any()
    hidden = _without_targets(table, unknown)
    if len(table) and not hidden.labelled().any():
        raise ConfigurationError(
            f"{_LABELLED}: {labelled} leaves no public sample with a target, and the server has "
            "nothing to learn from: raise it or data.init_args.public_train_fraction, or take "
            "fewer classes out by public_without"
        )
    return hidden


def _rows_of(table: SampleTable, name: str, classes: Sequence[str]) -> list[int]:
    """Return the labelled samples of a class, or of a domain.

    Raises:
        ConfigurationError: If the name stands for neither or for both.
    """
    domains = sorted(set(table.domains))
    if (name in classes) == (name in domains):
        both = "both a class and a domain" if name in classes else "neither a class nor a domain"
        raise ConfigurationError(
            f"{_LABELLED}: {name!r} is {both} of the public samples; the classes are "
            f"{list(classes)}, the domains {domains}"
        )
    wanted = _of_classes(table, [name], classes) if name in classes else _of_domains(table, [name])
    return np.flatnonzero(wanted & table.labelled().numpy()).tolist()


def _unlabelled(table: SampleTable, rows: list[int], fraction: float, *, seed: int) -> set[int]:
    """Return those of the rows that lose their target."""
    if fraction == 0:
        return set(rows)
    known, _ = split_groups([table.groups[i] for i in rows], 1 - fraction, seed=seed)
    return set(rows) - {rows[i] for i in known}


def _without_targets(table: SampleTable, rows: set[int]) -> SampleTable:
    return table.with_targets({table.ids[i]: "" for i in rows})


# What the server has not seen ---------------------------------------------------------------------


def lacking(table: SampleTable, without: Without | None, classes: Sequence[str]) -> SampleTable:
    """Return the samples without some classes and domains.

    Args:
        table: The samples.
        without: What to leave out; ``None`` for nothing.
        classes: Names of the classes of ``table.labels``.

    Raises:
        ConfigurationError: If a class is unknown.
    """
    if without is None:
        return table
    if unknown := [name for name in without.classes if name not in classes]:
        raise ConfigurationError(
            f"{_WITHOUT}.classes: {unknown} are not among the classes {list(classes)}"
        )
    gone = _of_classes(table, without.classes, classes) & table.labelled().numpy()
    return table.select(np.flatnonzero(~(gone | _of_domains(table, without.domains))))


def check_without(without: Without | None, public: SampleTable, *, left: int) -> None:
    """Check that the domains exist, and that samples are left.

    Args:
        without: What is left out.
        public: All public samples.
        left: Number of training samples that are left.

    Raises:
        ConfigurationError: If not.
    """
    if without is None:
        return
    faults, domains = FaultList(), set(public.domains)
    if unknown := [name for name in without.domains if name not in domains]:
        faults.append(
            f"{_WITHOUT}.domains: {unknown} are not among the domains of the public samples, "
            f"{sorted(domains)}"
        )
    if not left:
        faults.append(f"{_WITHOUT} leaves the server no samples: take fewer classes or domains out")
    faults.raise_any()


def _of_classes(
    table: SampleTable, names: Sequence[str], classes: Sequence[str]
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    numbers = [classes.index(name) for name in names]
    return np.isin(table.labels.numpy(), numbers)


def _of_domains(
    table: SampleTable, names: Sequence[str]
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.isin(np.asarray(table.domains, dtype=str), list(names))
