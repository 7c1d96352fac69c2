"""The data set that a manifest describes."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn

from mlecs_lightning.data.base import FederatedDataModule, Partition, Pools
from mlecs_lightning.data.dealing import client_faults
from mlecs_lightning.data.decoding.preparation import Preparation
from mlecs_lightning.data.decoding.shapes import Declared
from mlecs_lightning.data.manifest.inputs import Inputs, decode_inputs
from mlecs_lightning.data.manifest.line import UNNAMED, Line
from mlecs_lightning.data.manifest.lines import raise_faults, read_lines
from mlecs_lightning.data.manifest.pools import (
    declared_modalities,
    missing_faults,
    named_clients,
    public_preparations,
    rows_of_splits,
)
from mlecs_lightning.data.manifest.split import DrawnSplit, split_faults, with_splits
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
from mlecs_lightning.names import look_alike
from mlecs_lightning.storage.paths import expanded
from mlecs_lightning.types import ClientProfile

__all__ = ["Manifest"]


class Manifest(FederatedDataModule):
    """Your own samples, listed in a file of JSON lines (or Parquet) with one sample per line.

    ====================== =========================================================================
    key                    value
    ====================== =========================================================================
    ``id``                 unique
    ``split``              ``public`` (for the server), ``train`` (for a client), ``test``, ``val``;
                           or none, if the option ``split`` draws one
    ``client``, ``domain`` which client the sample belongs to, or which domain it comes from; a line
                           names at most one of the two, and all lines the same one. The samples of
                           a domain go to the clients that name it under ``domains``, or are dealt
    ``modalities``         for each modality a path below ``root``, or inline numbers; a modality
                           that is left out or null is absent
    ``target``             the sentence to generate; or ``targets``, a list of equally good ones. A
                           line without either, of split ``test`` or none, is for ``predict`` only;
                           of split ``public``, only its inputs are used
    ``instruction``        the question to the model, if it differs from the common one
    ``group``              the recording that the sample is cut from; a recording goes as a whole to
                           training or validation, and lines without a split follow the others
    ``meta``               anything; not read
    ====================== =========================================================================

    Lines of split ``val`` validate the client or domain that they name; those that name none
    validate the server. If no line of split ``val`` names a client or domain, ``val_fraction`` of
    each client's samples is held out instead; if all do, ``val_fraction`` of the public samples.

    Files may be png and jpg (in [0, 1]), npy, csv (a row per instant, a column per channel), wav,
    flac, mp3, ogg and m4a (in [-1, 1]), mp4 and txt (UTF-8; inline text is ``{"text": "..."}``).
    `Declared` says how they are brought to the declared shape. They are decoded once and cached.
    Each modality except text is then standardised by channel, unless ``standardise: false``. Mean
    and deviation are those of the public samples, so that the shared constants reveal no private
    value: see `Preparation`. A checkpoint keeps them, so `predict` needs only the lines to be
    answered.
    """

    def __init__(
        self,
        file: list[str] | str | Path,
        modalities: dict[str, dict[str, Any]],
        *,
        root: str | Path | None = None,
        allowed_roots: list[str] | None = None,
        split: DrawnSplit | None = None,
        instruction: str = "describe what the sensors see .",
        reference: Literal["first", "any"] = "first",
        labels: dict[str, list[str]] | None = None,
        on_error: Literal["raise", "drop"] = "raise",
        cache_dir: str | Path | None = None,
        partition: Partition = "domain",
        **kwargs: Any,
    ) -> None:
        """Set where the samples are, and the form of their modalities.

        Args:
            file: The manifest, or a list of manifests to read together.
            modalities: ``kind``, ``shape`` and options of each modality: see `Declared`.
            root: Folder of all files, the manifest's own by default. No path may leave it.
            allowed_roots: Further folders that a symbolic link below ``root`` may lead into.
            split: How lines without a split are split, by ``group``: ``{public: 0.25, test: 0.2,
                seed: 0}`` draws fractions, stratified by `with_splits`; ``{public: [...], test:
                [...]}`` names the groups. The rest is for the clients.
            instruction: The question to the model, for lines without one.
            reference: Which of several ``targets`` a sample is trained on: the ``first``, or
                ``any``, drawn once by ``seed``. Metrics always use all of them.
            labels: For each class the words that name it in a sentence, for accuracy and macro-F1;
                every target must name one class. Without ``labels`` there are no classes.
            on_error: ``raise`` stops before the run if an input cannot be decoded; ``drop``
                continues as if the sample lacked that modality. All other faults stop the run.
            cache_dir: Where decoded files are kept, ``$MLECS_CACHE`` or
                ``~/.cache/mlecs_lightning`` by default.
            partition: As in `FederatedDataModule`; ``dirichlet`` needs ``labels``.
            **kwargs: See `FederatedDataModule`.

        Raises:
            ValueError: If a value is out of range; one message holds all faults.
        """
        faults = FaultList()
        with faults.collecting():
            super().__init__(partition=partition, **kwargs)
        self.declared = declared_modalities(modalities, faults)
        faults += split_faults(split)
        if not instruction.strip():
            faults.append(f"data.init_args.instruction must not be blank, got {instruction!r}")
        self._read_label: LabelReader | None = None
        if labels:
            try:
                self._read_label = keyword_label_reader(labels)
            except ValueError as error:
                faults.append(f"data.init_args.labels: {error}")
        elif partition == "dirichlet":
            faults.append(
                "data.init_args.partition: dirichlet skews the labels, so it needs "
                "data.init_args.labels"
            )
        if kwargs.get("pretrain_on") == "targets":
            faults.append(
                "data.init_args.pretrain_on: a manifest has no sentences but those of its samples, "
                "and a pocket model learns none of a client: take public or other"
            )
        files = file if isinstance(file, list) else [file]
        self.files = [expanded(each, key="data.init_args.file") for each in files]
        if not self.files:
            faults.append("data.init_args.file is empty: name at least one")
        faults.raise_any()
        self.modalities = {name: declared.spec for name, declared in self.declared.items()}
        self.classes = tuple(labels or ())
        self.root = None if root is None else expanded(root, key="data.init_args.root")
        self.allowed_roots = [
            expanded(each, key="data.init_args.allowed_roots") for each in allowed_roots or ()
        ]
        self.split = split
        self.instruction = instruction
        self.reference = reference
        self.on_error = on_error
        self.inputs: Inputs | None = None
        """Shapes, rates and faults found while the files were read, without the values."""
        self._given_cache = (
            None if cache_dir is None else expanded(cache_dir, key="data.init_args.cache_dir")
        )
        self._cache = DecodeCache(self._given_cache)
        self.named_val: SampleTable | None = None
        """The samples of split val, if there are any."""
        self._asked: SampleTable | None = None
        self._names_clients = False
        self._preparations: dict[str, Preparation] = {}
        self._clients: tuple[str, ...] = ()

    # Reading --------------------------------------------------------------------------------

    def load_pools(self) -> Pools:
        """Read the lines, decode the files and standardise the inputs.

        Raises:
            ValueError: If lines or files have faults; one message holds all, each with its line.
            FileNotFoundError: If there is no manifest, or no folder ``root``.
            ImportError: If a package is missing that a file needs.
        """
        lines, labels, inputs = self._read()
        rows = rows_of_splits(lines, inputs.present)
        if not self._preparations:
            names, trains = tuple(self.modalities), self.held != ()
            raise_faults(missing_faults(lines, rows, inputs.present, names, trains=trains))
            self._preparations = public_preparations(self.declared, inputs, rows["public"])
        table = self._table(lines, labels, inputs)
        self._asked = table.select(rows["test"])
        self._names_clients = any(line.owner == "client" for line in lines)
        self._clients = named_clients(lines)
        self.inputs = replace(inputs, columns={})
        self.named_val = table.select(rows["val"])
        answered = [row for row in rows["test"] if lines[row].targets]
        return Pools(
            table.select(rows["public"]), table.select(rows["train"]), table.select(answered)
        )

    def _read(self) -> tuple[list[Line], list[int], Inputs]:
        """Return the lines with their classes and decoded inputs.

        Raises:
            ValueError: See `load_pools`.
        """
        if self.root is not None and not self.root.is_dir():
            raise FileNotFoundError(f"data.init_args.root: there is no folder {str(self.root)!r}")
        lines, faults = self._lines()
        inputs = decode_inputs(lines, self.declared, self._cache, allowed=self.allowed_roots)
        labels = []
        for line in lines:
            label = self.read_label(line.targets[0]) if self._read_label and line.targets else 0
            if label is None:
                faults.append(
                    f"{line.where} (id {line.id!r}): the target {line.targets[0]!r} must name "
                    f"exactly one of data.init_args.labels {list(self.classes)}"
                )
            labels.append(label or 0)
        faults += inputs.outside
        if self.on_error == "raise":
            faults += inputs.unread
        elif inputs.unread:
            rank_zero_warn(f"{len(inputs.unread)} inputs count as absent: {inputs.unread[0]} ...")
        raise_faults(faults)
        return with_splits(lines, labels, self.split), labels, inputs

    def _lines(self) -> tuple[list[Line], list[str]]:
        """Return the lines, and what is wrong with others: see `read_lines`."""
        drawn = self.split is not None
        return read_lines(self.files, self.root, self.declared, draws_split=drawn)

    def _table(self, lines: Sequence[Line], labels: Sequence[int], inputs: Inputs) -> SampleTable:
        """Return all samples, with standardised inputs."""
        scaled = {}
        for k, (modality, column) in enumerate(inputs.columns.items()):
            scaled[modality] = self._preparations[modality].scaled(column, inputs.present[:, k])
        return SampleTable(
            ids=tuple(line.id for line in lines),
            modalities=tuple(self.modalities),
            inputs=scaled,
            present=inputs.present,
            instructions=tuple(line.instruction or self.instruction for line in lines),
            targets=tuple(map(self._target, lines)),
            labels=torch.tensor(labels, dtype=torch.int64),
            domains=tuple(line.domain for line in lines),
            groups=tuple(line.group for line in lines),
        )

    def _target(self, line: Line) -> str:
        """Return the sentence to train on, with all references; empty if there is none."""
        if len(line.targets) < 2:
            return "".join(line.targets)
        chosen = line.targets[0]
        if self.reference == "any" and line.split in ("public", "train"):
            # The class is read from the target: only a sentence of the same class may replace it.
            same = [t for t in line.targets if self.read_label(t) == self.read_label(chosen)]
            chosen = same[zlib.crc32(f"{self.seed}/{line.id}".encode()) % len(same)]
        return ReferencedText(chosen, line.targets)

    def read_label(self, text: str) -> int | None:
        """Return the class whose words are in the text; ``None`` if it names none or several."""
        return None if self._read_label is None else self._read_label(text)

    def pretraining_pairs(self) -> list[tuple[str, str]]:
        """Return key words and sentences of the public targets.

        Private targets are left out, so a pocket model cannot generate a word that occurs only in
        them.
        """
        return keyword_pairs(
            sentence
            for target in self.pools.public.targets
            if target
            for sentence in references_of(target)
        )

    # Preparation of new inputs --------------------------------------------------------------

    def _declared(self) -> dict[str, Declared]:
        return self.declared

    @property
    def preparations(self) -> dict[str, Preparation]:
        """How inputs are prepared, with mean and deviation of the public samples."""
        _ = self.pools
        return dict(self._preparations)

    def prepare_as(self, preparations: Mapping[str, Preparation]) -> None:
        """See `FederatedDataModule.prepare_as`; the manifest then needs no training samples."""
        super().prepare_as(preparations)
        self._preparations, self._pools = dict(preparations), None

    def asked(self, *, others: Collection[str] = ()) -> SampleTable:
        """Return the samples of split test, including those without a target.

        Args:
            others: Leave out samples whose line names one of these clients.

        Raises:
            ConfigurationError: If there are none at all.
        """
        _ = self.pools
        assert self._asked is not None
        if not len(self._asked):
            raise ConfigurationError(
                f"data.init_args.file: nothing to answer in {[f.name for f in self.files]}: no "
                "line is of split test, or has neither split nor target"
            )
        if not (others and self._names_clients):
            return self._asked
        kept = [i for i, owner in enumerate(self._asked.domains) if owner not in others]
        return self._asked.select(kept)

    # Dealing --------------------------------------------------------------------------------

    def _public_split(self) -> tuple[SampleTable, SampleTable]:
        public, val = self.pools.public, self._val_of([UNNAMED])
        return (public, val) if len(val) else super()._public_split()

    def attach(self, clients: Mapping[str, ClientProfile]) -> None:
        """Give every client its samples.

        Args:
            clients: The clients, by name. If the manifest names clients, each gets its own samples,
                unless it names others under ``domains``.

        Raises:
            ValueError: If a client has no samples, or as `FederatedDataModule.attach`.
        """
        self.setup()
        own = {name: self._with_domain(name, profile) for name, profile in clients.items()}
        here = {n: p for n, p in clients.items() if self.held is None or n in self.held}
        faults = FaultList(self._owner_faults(here) if here else ())
        if faults:
            faults += client_faults(own, self.modalities, partition=self.partition)
            faults.raise_any()
        before, fraction = self._private, self.val_fraction
        if self._has_own_val:
            self.val_fraction = 0.0  # all of split train is for training
        try:
            super().attach(own)
        finally:
            self.val_fraction = fraction
        for name, splits in self._private.items():
            if not len(splits["train"]):
                faults.append(
                    f"clients.{name}: none of its samples has any of its modalities "
                    f"{list(own[name].modalities)}"
                )
        if faults:
            self._private = before
            faults.raise_any()
        if self._has_own_val:
            for name, splits in self._private.items():
                table = self._val_of({*splits["train"].domains} - {UNNAMED})
                splits["val"] = self._as_seen_by(table, own[name], seed=self._seed(name, "val"))

    def _with_domain(self, name: str, profile: ClientProfile) -> ClientProfile:
        """Let a client that the manifest names hold its own samples, unless it says otherwise."""
        if self.partition == "domain" and name in self._clients and profile.domains is None:
            return replace(profile, domains=(name,))
        return profile

    def _owner_faults(self, clients: Mapping[str, ClientProfile]) -> list[str]:
        """Compare the clients of the manifest with those of the configuration."""
        if self.partition == "dirichlet":
            given = [f"the clients {list(self._clients)}"] if self._clients else []
            given += ["clients' samples of split val"] if self._has_own_val else []
            return [
                f"data.init_args.partition: dirichlet ignores who owns a sample, but the manifest "
                f"has {what}; use domain"
                for what in given
            ]
        return [
            f"clients.{name}: no line of split train names this client, only "
            f"{list(self._clients)}{look_alike(name, self._clients)}; to give it samples of these, "
            f"list them under clients.{name}.domains"
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

    def _sensed_by(self, table: SampleTable, profile: ClientProfile) -> SampleTable:
        """Also leave out the samples that have none of the client's modalities."""
        seen = super()._sensed_by(table, profile)
        return seen.select(seen.present.any(dim=1).nonzero().flatten().tolist())
