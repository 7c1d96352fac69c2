"""Your own data: a file with one sample a line, and the files that it names."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mlecs_lightning.data.base import FederatedDataModule, Partition, Pools
from mlecs_lightning.data.dealing import client_faults
from mlecs_lightning.data.decoding.preparation import Preparation
from mlecs_lightning.data.decoding.shapes import Declared
from mlecs_lightning.data.manifest.inputs import Inputs, decode_inputs
from mlecs_lightning.data.manifest.lines import UNNAMED, Line, Split, raise_faults, read_lines
from mlecs_lightning.data.manifest.store import DecodeCache
from mlecs_lightning.data.manifest.words import keyword_pairs
from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.errors import ConfigurationError, FaultList
from mlecs_lightning.metrics import (
    LabelReader,
    ReferencedText,
    keyword_label_reader,
    references_of,
)
from mlecs_lightning.names import modality_name_faults
from mlecs_lightning.storage.paths import expanded
from mlecs_lightning.types import ClientProfile

__all__ = ["Manifest"]


class Manifest(FederatedDataModule):
    """Samples of your own, named by a file of JSON lines (or Parquet), one sample a line.

    ====================== =========================================================================
    key                    value
    ====================== =========================================================================
    ``id``                 unique
    ``split``              ``public`` (the server's), ``train`` (a client's own), ``test``, ``val``
    ``client``, ``domain`` at most one, and one kind in all lines: whose sample it is, or from
                           where. Samples that name a client are its own, those of a domain go to
                           the clients that name it under ``domains``, or are dealt
    ``modalities``         for each a path below ``root`` or inline numbers; absent or null is
                           absent
    ``target``             the sentence to say; or ``targets``, several that are as right. A line
                           without any, of split ``test`` or none, is only answered by ``predict``;
                           of split ``public``, its inputs are used where no target is needed
    ``instruction``        what the model is asked, if not the one of all
    ``group``              the recording that it is cut from; validation never cuts one in two
    ``meta``               anything; not read
    ====================== =========================================================================

    Lines of split ``val`` are the validation of the client or domain that they name, or of the
    server. Where no line names a client or domain ``val_fraction`` of every client's samples is
    held out instead, and where all do, of the public ones.

    Files are png and jpg (in 0..1), npy, csv (a row an instant, a column a channel), wav and flac
    (-1..1), mp4 and txt (UTF-8; a text in the line itself is ``{"text": "..."}``); `Declared` says
    how they are brought to the declared shape. They are decoded once and cached. Each modality but
    text is then standardised by channel, unless it says otherwise, with mean and deviation of the
    public samples, so that no private value is in a constant that everybody shares: see
    `Preparation`. A checkpoint keeps these constants: `predict` needs no public samples, only the
    lines that are to be answered.
    """

    def __init__(
        self,
        file: list[str] | str | Path,
        modalities: dict[str, dict[str, Any]],
        *,
        root: str | Path | None = None,
        allowed_roots: list[str] | None = None,
        instruction: str = "describe what the sensors see .",
        reference: Literal["first", "any"] = "first",
        labels: dict[str, list[str]] | None = None,
        on_error: Literal["raise", "drop"] = "raise",
        cache_dir: str | Path | None = None,
        partition: Partition = "domain",
        **kwargs: Any,
    ) -> None:
        """Say where the samples are, and what their modalities look like.

        Args:
            file: The manifest, or several whose lines are taken together.
            modalities: For each modality ``kind``, ``shape`` and options: see `Declared`.
            root: Folder in which all files lie; that of the manifest by default. No path may leave
                it.
            allowed_roots: Further folders: a symbolic link below ``root`` may lead into them.
            instruction: What the model is asked where a line does not say.
            reference: Which of several ``targets`` a training sample has: the ``first``, or
                ``any``, drawn once by ``seed``. Scores always know all of them.
            labels: For each class the words that name it in a sentence, for accuracy and macro-F1;
                every target must name one. Without, there are no classes.
            on_error: Whether an input that cannot be decoded stops the run before it begins, or is
                dropped, as if the sample lacked that modality. All other faults stop it.
            cache_dir: Where decoded files are kept, ``$MLECS_CACHE`` or
                ``~/.cache/mlecs_lightning`` by default.
            partition: As in `FederatedDataModule`; ``dirichlet`` needs ``labels``.
            **kwargs: See `FederatedDataModule`.

        Raises:
            ValueError: If a value is out of range; all faults in one message.
        """
        faults = FaultList()
        with faults.collecting():
            super().__init__(partition=partition, **kwargs)
        self.declared: dict[str, Declared] = {}
        for name, values in modalities.items():
            key = f"data.init_args.modalities.{name}"
            with faults.collecting():
                self.declared[name] = Declared.from_values(values, key=key)
        faults += modality_name_faults(modalities, key="data.init_args.modalities")
        if not modalities:
            faults.append("data.init_args.modalities is empty: name at least one")
        if not instruction.strip():
            faults.append(f"data.init_args.instruction is blank, got {instruction!r}")
        self._read_label: LabelReader | None = None
        if labels:
            try:
                self._read_label = keyword_label_reader(labels)
            except ValueError as error:
                faults.append(f"data.init_args.labels: {error}")
        elif partition == "dirichlet":
            faults.append(
                "data.init_args.partition: dirichlet skews the labels, give data.init_args.labels"
            )
        self.files = [
            expanded(f, key="data.init_args.file")
            for f in (file if isinstance(file, list) else [file])
        ]
        if not self.files:
            faults.append("data.init_args.file is empty: name at least one")
        faults.raise_any()
        self.modalities = {name: declared.spec for name, declared in self.declared.items()}
        self.classes = tuple(labels or ())
        self.root = None if root is None else expanded(root, key="data.init_args.root")
        self.allowed_roots = [
            expanded(each, key="data.init_args.allowed_roots") for each in allowed_roots or ()
        ]
        self.instruction = instruction
        self.reference = reference
        self.on_error = on_error
        self.inputs: Inputs | None = None
        """What was found while the files were read, without the values themselves."""
        self._cache = DecodeCache(
            None if cache_dir is None else expanded(cache_dir, key="data.init_args.cache_dir")
        )
        self.named_val: SampleTable | None = None
        """The samples of split val, if there are any."""
        self._asked: SampleTable | None = None
        self._preparations: dict[str, Preparation] = {}
        self._clients: tuple[str, ...] = ()

    # Reading --------------------------------------------------------------------------------

    def load_pools(self) -> Pools:
        """Read the lines, decode the files, and standardise.

        Raises:
            ValueError: If lines or files have faults; all in one message, each with its line.
            FileNotFoundError: If there is no manifest, or no folder ``root``.
            ImportError: If a package is missing that a file needs.
        """
        if self.root is not None and not self.root.is_dir():
            raise FileNotFoundError(f"data.init_args.root: there is no folder {str(self.root)!r}")
        lines, faults = read_lines(self.files, self.root, self.declared)
        inputs = decode_inputs(lines, self.declared, self._cache, allowed=self.allowed_roots)
        labels = [self._label(line) for line in lines]
        faults += [
            f"{line.where} (id {line.id!r}): the target {line.targets[0]!r} names none, or more "
            f"than one, of data.init_args.labels {list(self.classes)}"
            for line, label in zip(lines, labels, strict=True)
            if label is None
        ]
        faults += inputs.outside
        if self.on_error == "raise":
            faults += inputs.unread
        elif inputs.unread:
            rank_zero_warn(f"{len(inputs.unread)} inputs count as absent: {inputs.unread[0]} ...")
        raise_faults(faults)
        is_public = torch.tensor([line.split == "public" for line in lines], dtype=torch.bool)
        has = dict(zip(self.modalities, inputs.present.T, strict=True))
        if not self._preparations:
            raise_faults(self._missing(lines, inputs.present, is_public))
            self._preparations = {
                modality: Preparation.of(
                    declared, inputs.columns[modality], has[modality] & is_public
                )
                if declared.is_scaled
                else Preparation(declared)
                for modality, declared in self.declared.items()
            }
        table = SampleTable(
            ids=tuple(line.id for line in lines),
            modalities=tuple(self.modalities),
            inputs={
                modality: self._preparations[modality].scaled(column, has[modality])
                for modality, column in inputs.columns.items()
            },
            present=inputs.present,
            instructions=tuple(line.instruction or self.instruction for line in lines),
            targets=tuple(map(self._target, lines)),
            labels=torch.tensor([label or 0 for label in labels], dtype=torch.int64),
            domains=tuple(line.domain for line in lines),
            groups=tuple(line.group for line in lines),
        )
        # A sample that has lost all of its inputs is none any more.
        sound = inputs.present.any(dim=1).tolist()
        rows = {
            split: [i for i, line in enumerate(lines) if sound[i] and line.split == split]
            for split in get_args(Split)
        }
        self._asked = table.select(rows["test"])
        rows["test"] = [i for i in rows["test"] if lines[i].targets]
        named = (line.domain for line in lines if line.split == "train" and line.owner == "client")
        self._clients = tuple(dict.fromkeys(named))
        self.inputs = replace(inputs, columns={})
        self.named_val = table.select(rows["val"])
        return Pools(*(table.select(rows[split]) for split in ("public", "train", "test")))

    def _missing(self, lines: Sequence[Line], present: Tensor, is_public: Tensor) -> list[str]:
        """Say what no sample is there for."""
        has = present.any(dim=1)
        is_train = torch.tensor([line.split == "train" for line in lines], dtype=torch.bool)
        faults = [
            f"no sample is left of split {split!r}: {party} has nothing to train on"
            for split, party, rows in (
                ("public", "the server", is_public),
                ("train", "every client", is_train),
            )
            if not (has & rows).any()
        ]
        if faults:
            return faults
        if not any(line.targets for line, row in zip(lines, is_public, strict=True) if row):
            return ["no public sample has a target: the server has nothing to learn from"]
        return [
            f"no public sample has {modality!r}: the server cannot learn it, nor is there a scale"
            for modality, column in zip(self.modalities, present.T, strict=True)
            if not (column & is_public).any()
        ]

    def _label(self, line: Line) -> int | None:
        if self._read_label is None or not line.targets:
            return 0
        return self._read_label(line.targets[0])

    def _target(self, line: Line) -> str:
        """Return the sentence to train on; it knows the others. Empty if there is none."""
        if len(line.targets) < 2:
            return "".join(line.targets)
        chosen = line.targets[0]
        if self.reference == "any" and line.split in ("public", "train"):
            # A class is read from the target: only sentences of the same one can stand for it.
            same = [t for t in line.targets if self.read_label(t) == self.read_label(chosen)]
            chosen = same[zlib.crc32(f"{self.seed}/{line.id}".encode()) % len(same)]
        return ReferencedText(chosen, line.targets)

    def read_label(self, text: str) -> int | None:
        """Return the class whose words the text has, ``None`` if none or several are named."""
        return None if self._read_label is None else self._read_label(text)

    def pretraining_pairs(self) -> list[tuple[str, str]]:
        """Return key words and sentences of the public targets: private ones stay private.

        So a pocket model cannot say a word that no public target has.
        """
        return keyword_pairs(
            sentence
            for target in self.pools.public.targets
            if target
            for sentence in references_of(target)
        )

    # New files ------------------------------------------------------------------------------

    def _declared(self) -> dict[str, Declared]:
        return self.declared

    @property
    def preparations(self) -> dict[str, Preparation]:
        """See `FederatedDataModule.preparations`: with mean and deviation of public samples."""
        _ = self.pools
        return dict(self._preparations)

    def prepare_as(self, preparations: Mapping[str, Preparation]) -> None:
        """See `FederatedDataModule.prepare_as`. Then no public or private samples are needed."""
        super().prepare_as(preparations)
        self._preparations, self._pools = dict(preparations), None

    def asked(self) -> SampleTable:
        """Return the samples of split test, those without a target among them.

        Raises:
            ConfigurationError: If there are none.
        """
        _ = self.pools
        assert self._asked is not None
        if not len(self._asked):
            raise ConfigurationError(
                f"data.init_args.file: nothing to answer in {[f.name for f in self.files]}: no "
                "line is of split test, or without split and target"
            )
        return self._asked

    # Dealing --------------------------------------------------------------------------------

    def _public_split(self) -> tuple[SampleTable, SampleTable]:
        public, val = self.pools.public, self._val_of([UNNAMED])
        return (public, val) if len(val) else super()._public_split()

    def attach(self, clients: Mapping[str, ClientProfile]) -> None:
        """Give every client its samples.

        Args:
            clients: The clients, by name. Where the manifest names clients, these are its own,
                unless they say under ``domains`` whose samples they hold.

        Raises:
            ValueError: If a client has no samples, or as `FederatedDataModule.attach`.
        """
        self.setup()
        faults = FaultList(self._owner_faults(clients))
        own = {
            name: replace(profile, domains=(name,))
            if self.partition == "domain" and name in self._clients and profile.domains is None
            else profile
            for name, profile in clients.items()
        }
        if faults:
            faults += client_faults(own, self.modalities, partition=self.partition)
            faults.raise_any()
        before, fraction = self._private, self.val_fraction
        if self._has_own_val:
            self.val_fraction = 0.0  # what is left for training is all of split train
        try:
            super().attach(own)
        finally:
            self.val_fraction = fraction
        faults += [
            f"clients.{name}: none of its samples has any of its modalities "
            f"{list(own[name].modalities)}"
            for name, splits in self._private.items()
            if not len(splits["train"])
        ]
        if faults:
            self._private = before
            faults.raise_any()
        for name, splits in self._private.items() if self._has_own_val else ():
            table = self._val_of({*splits["train"].domains} - {UNNAMED})
            splits["val"] = self._as_seen_by(table, own[name], seed=self._seed(name, "val"))

    def _owner_faults(self, clients: Mapping[str, ClientProfile]) -> list[str]:
        """Say where the clients of the manifest and those of the YAML do not meet."""
        if self.partition == "dirichlet":
            given = [f"the clients {list(self._clients)}"] if self._clients else []
            given += ["clients' samples of split val"] if self._has_own_val else []
            return [
                f"data.init_args.partition: dirichlet deals the samples anew, but the manifest has "
                f"{what}; domain keeps to it"
                for what in given
            ]
        return [
            f"clients.{name}: no line of split train names this client, they name "
            f"{list(self._clients)}; to hold samples of these, say so under clients.{name}.domains"
            for name, profile in clients.items()
            if self._clients and name not in self._clients and profile.domains is None
        ]

    @property
    def _has_own_val(self) -> bool:
        return self.named_val is not None and bool({*self.named_val.domains} - {UNNAMED})

    def _val_of(self, domains: Collection[str]) -> SampleTable:
        assert self.named_val is not None
        return self.named_val.select(
            [i for i, d in enumerate(self.named_val.domains) if d in domains]
        )

    def _as_seen_by(self, table: SampleTable, profile: ClientProfile, *, seed: int) -> SampleTable:
        """Leave out, too, the samples that have none of the client's modalities."""
        seen = super()._as_seen_by(table, profile, seed=seed)
        return seen.select(seen.present.any(dim=1).nonzero().flatten().tolist())
