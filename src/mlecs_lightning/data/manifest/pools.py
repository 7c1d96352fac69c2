"""The samples of a manifest as pools: which line goes where, and how inputs are standardised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from mlecs_lightning.data.decoding.preparation import Preparation
from mlecs_lightning.data.decoding.shapes import Declared
from mlecs_lightning.data.manifest.inputs import Inputs
from mlecs_lightning.data.manifest.line import Line, Split
from mlecs_lightning.errors import FaultList
from mlecs_lightning.names import modality_name_faults

__all__ = [
    "declared_modalities",
    "missing_faults",
    "named_clients",
    "public_preparations",
    "rows_of_splits",
]


def rows_of_splits(lines: Sequence[Line], present: Tensor) -> dict[Split, list[int]]:
    """Return the rows of each split, without samples that have lost all of their inputs.

    Args:
        lines: The samples, length N.
        present: (N, K) bool, whether a sample has a modality.
    """
    rows: dict[Split, list[int]] = {split: [] for split in get_args(Split)}
    for row, has_inputs in enumerate(present.any(dim=1).tolist()):
        if has_inputs:
            rows[lines[row].split].append(row)
    return rows


def missing_faults(
    lines: Sequence[Line],
    rows: Mapping[Split, Sequence[int]],
    present: Tensor,
    modalities: Sequence[str],
    *,
    trains: bool = True,
) -> list[str]:
    """Report training splits without samples or targets, and modalities no public sample has.

    Args:
        lines: The samples, length N.
        rows: See `rows_of_splits`.
        present: (N, K) bool, whether a sample has a modality.
        modalities: The K modalities.
        trains: Whether clients train in this process.
    """
    faults = []
    if not rows["public"]:
        faults.append("no sample of split 'public' is left: the server has nothing to train on")
    if trains and not rows["train"]:
        faults.append("no sample of split 'train' is left: every client has nothing to train on")
    if not faults and not any(lines[row].targets for row in rows["public"]):
        faults.append("no public sample has a target: the server has nothing to learn from")
    if faults:
        return faults
    found = present[rows["public"]].any(dim=0).tolist()
    return [
        f"no public sample has {modality!r}: the server cannot learn it, and there is nothing to "
        "standardise it with"
        for modality, is_found in zip(modalities, found, strict=True)
        if not is_found
    ]


def public_preparations(
    declared: Mapping[str, Declared], inputs: Inputs, public: Sequence[int]
) -> dict[str, Preparation]:
    """Return how each modality is prepared, with mean and deviation of the public samples.

    Args:
        declared: The K modalities.
        inputs: The decoded inputs.
        public: Rows of the public samples; `missing_faults` has found each modality in one.
    """
    is_public = torch.zeros(len(inputs.present), dtype=torch.bool)
    is_public[list(public)] = True
    preparations = {}
    for k, (modality, form) in enumerate(declared.items()):
        if form.is_scaled:
            known = inputs.present[:, k] & is_public
            preparations[modality] = Preparation.of(form, inputs.columns[modality], known)
        else:
            preparations[modality] = Preparation(form)
    return preparations


def declared_modalities(
    modalities: Mapping[str, dict[str, Any]], faults: FaultList
) -> dict[str, Declared]:
    """Read the modalities of the YAML; what is wrong with them is added to ``faults``."""
    declared = {}
    for name, values in modalities.items():
        with faults.collecting():
            declared[name] = Declared.from_values(values, key=f"data.init_args.modalities.{name}")
    faults += modality_name_faults(modalities, key="data.init_args.modalities")
    if not modalities:
        faults.append("data.init_args.modalities is empty: name at least one")
    return declared


def named_clients(lines: Sequence[Line]) -> tuple[str, ...]:
    """Return the clients that lines of split train name, in order of appearance."""
    named = (line.domain for line in lines if line.split == "train" and line.owner == "client")
    return tuple(dict.fromkeys(named))
