"""An in-memory table of multimodal samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mlecs_lightning.functional import bytes_to_text
from mlecs_lightning.metrics import references_of
from mlecs_lightning.types import Batch

__all__ = ["Pools", "SampleTable"]


@dataclass(frozen=True)
class SampleTable(Dataset[Batch]):
    """N samples stored in columns; a list of rows is returned as a `Batch`.

    ``__getitems__`` cuts a whole batch out of the columns at once, so that a `DataLoader` need not
    collate single samples.

    Attributes:
        ids: Unique sample ids, length N.
        modalities: The K modality names, in column order.
        inputs: A tensor (N, ...) for each modality.
        present: (N, K) bool, whether a sample has a modality.
        instructions: The question to the model, length N.
        targets: The text to generate, length N.
        labels: (N,) int64 class of each sample, used only for partition and stratification;
            training and metrics use the target text.
        domains: Domain of each sample (scene, writer, site), length N.
        groups: Recording that each sample belongs to, length N. All samples of a group go to the
            same side of a split into training and validation.
    """

    ids: tuple[str, ...]
    modalities: tuple[str, ...]
    inputs: dict[str, Tensor]
    present: Tensor
    instructions: tuple[str, ...]
    targets: tuple[str, ...]
    labels: Tensor
    domains: tuple[str, ...]
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that all columns have the same length.

        Raises:
            ValueError: If they do not, or inputs and modalities differ.
        """
        n = len(self.ids)
        lengths = {
            "instructions": len(self.instructions),
            "targets": len(self.targets),
            "labels": len(self.labels),
            "domains": len(self.domains),
            "groups": len(self.groups),
            "present": len(self.present),
        } | {name: len(column) for name, column in self.inputs.items()}
        wrong = {name: length for name, length in lengths.items() if length != n}
        if wrong:
            raise ValueError(f"a table with {n} ids has columns of other lengths: {wrong}")
        if tuple(self.inputs) != self.modalities or self.present.shape[1] != len(self.modalities):
            raise ValueError(
                f"each of the modalities {self.modalities} needs inputs and a column of `present`, "
                f"got inputs {tuple(self.inputs)} and present {tuple(self.present.shape)}"
            )

    def __len__(self) -> int:
        """Return the number of samples N."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Batch:
        """Return one sample as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the given rows, in the given order, as one batch."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return Batch(
            ids=tuple(self.ids[i] for i in indices),
            modalities=self.modalities,
            inputs={name: column[rows] for name, column in self.inputs.items()},
            present=self.present[rows],
            instructions=tuple(self.instructions[i] for i in indices),
            targets=tuple(self.targets[i] for i in indices),
        )

    def select(self, indices: Sequence[int] | np.ndarray) -> SampleTable:
        """Return a table of the given rows, in the given order."""
        picked = [int(i) for i in indices]
        rows = torch.as_tensor(picked, dtype=torch.int64)
        return SampleTable(
            ids=tuple(self.ids[i] for i in picked),
            modalities=self.modalities,
            inputs={name: column[rows] for name, column in self.inputs.items()},
            present=self.present[rows],
            instructions=tuple(self.instructions[i] for i in picked),
            targets=tuple(self.targets[i] for i in picked),
            labels=self.labels[rows],
            domains=tuple(self.domains[i] for i in picked),
            groups=tuple(self.groups[i] for i in picked),
        )

    def labelled(self) -> Tensor:
        """Return (N,) bool, the samples whose target is known."""
        return torch.tensor([bool(target) for target in self.targets], dtype=torch.bool)

    def texts(self, modalities: Sequence[str]) -> list[str]:
        """Return all targets, with all their references, and the texts of some modalities.

        Args:
            modalities: Modalities of kind ``text``.
        """
        found = [text for target in self.targets if target for text in references_of(target)]
        for name in modalities:
            found += [text for text in self.texts_of(name) if text is not None]
        return found

    def texts_of(self, name: str) -> list[str | None]:
        """Return the N texts of a modality of kind ``text``; ``None`` where it is absent."""
        here = self.present[:, self.modalities.index(name)]
        texts = iter(bytes_to_text(self.inputs[name][here]))
        return [next(texts) if is_here else None for is_here in here.tolist()]

    def with_targets(self, targets: Mapping[str, str]) -> SampleTable:
        """Return the same samples with other targets.

        Args:
            targets: By sample id; all others keep theirs.
        """
        changed = (targets.get(i, t) for i, t in zip(self.ids, self.targets, strict=True))
        return replace(self, targets=tuple(changed))

    def restrict(self, modalities: Sequence[str]) -> SampleTable:
        """Return the same samples with only the given modalities, in this table's order.

        Raises:
            KeyError: If a modality is not in the table.
        """
        unknown = set(modalities) - set(self.modalities)
        if unknown:
            raise KeyError(f"unknown modalities {sorted(unknown)}, known: {self.modalities}")
        kept = tuple(name for name in self.modalities if name in set(modalities))
        columns = [self.modalities.index(name) for name in kept]
        return replace(
            self,
            modalities=kept,
            inputs={name: self.inputs[name] for name in kept},
            present=self.present[:, columns],
        )

    def mask(self, keep: Tensor) -> SampleTable:
        """Return the same samples without the modalities that are False in ``keep`` (N, K) bool.

        Absent inputs become zero, so that no model can read them.
        """
        present = self.present & keep
        # Filled, not multiplied: a broken sensor's NaN times zero would still be NaN.
        inputs = {
            name: column.masked_fill(~present[:, k].view(-1, *[1] * (column.dim() - 1)), 0)
            for k, (name, column) in enumerate(self.inputs.items())
        }
        return replace(self, present=present, inputs=inputs)


class Pools(NamedTuple):
    """The three parts of a data set, before anything is dealt to clients.

    Attributes:
        public: The server's samples, with all modalities.
        private: The samples that are partitioned among the clients.
        test: Held-out samples of all domains.
    """

    public: SampleTable
    private: SampleTable
    test: SampleTable
