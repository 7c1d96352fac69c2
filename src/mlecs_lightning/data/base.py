"""Base class of all data sets: the server's public samples and the clients' private ones."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import lightning as L
from torch.utils.data import DataLoader

from mlecs_lightning.data.availability import draw_sample_mask
from mlecs_lightning.data.dealing import Partition, client_faults, deal, hold_out, pooled
from mlecs_lightning.data.decoding.preparation import Preparation
from mlecs_lightning.data.decoding.shapes import Declared
from mlecs_lightning.data.partition import split_groups
from mlecs_lightning.data.public import (
    Labelled,
    PretrainOn,
    Without,
    check_without,
    labelled_faults,
    lacking,
    partly_labelled,
    split_public,
)
from mlecs_lightning.data.sampling import SeededLoader, sequential_loader, whole_batch
from mlecs_lightning.data.schedule import Schedule
from mlecs_lightning.data.table import Pools, SampleTable
from mlecs_lightning.errors import FaultList
from mlecs_lightning.extras import Need, require
from mlecs_lightning.names import modality_name_faults
from mlecs_lightning.types import Batch, ClientProfile, ModalitySpec

__all__ = ["FederatedDataModule", "Partition", "Pools"]

Split = Literal["train", "val", "test"]


class FederatedDataModule(L.LightningDataModule, ABC):
    """Base class of all data sets: a subclass loads the samples, this class deals them to clients.

    A subclass sets `modalities` and `classes` and implements `load_pools`, `read_label` and
    `pretraining_pairs`.

    The federated trainer takes its data from `public`, `private` and `held_out`. A plain Lightning
    `Trainer`, as in `warmup`, gets the server's public samples from the ordinary hooks.
    """

    modalities: Mapping[str, ModalitySpec]
    classes: tuple[str, ...]

    def __init__(
        self,
        *,
        batch_size: int = 32,
        eval_batch_size: int = 256,
        partition: Partition = "domain",
        alpha: float = 1.0,
        val_fraction: float = 0.15,
        public_train_fraction: float = 1.0,
        public_labelled: Labelled = 1.0,
        public_without: Without | None = None,
        sample_rate: float = 1.0,
        num_workers: int = 0,
        seed: int = 0,
        schedule: Schedule | None = None,
        pretrain_on: PretrainOn | None = None,
    ) -> None:
        """Set how the samples are dealt.

        Args:
            batch_size: Training batch size, on the server and on every client.
            eval_batch_size: Evaluation batch size.
            partition: ``domain`` gives each client the domains it names (or its share of those that
                no client names); ``dirichlet`` skews the labels.
            alpha: Concentration of the Dirichlet label skew; the smaller, the more skewed.
            val_fraction: Fraction of the recordings of each training split that is held out for
                validation.
            public_train_fraction: Fraction of the public training recordings to train on. A smaller
                subset is contained in every larger one.
            public_labelled: Fraction of the public training recordings with a target that keep it;
                all inputs remain. Also for single classes and domains, as in ``{falling: 0.1,
                bedroom: 0}``; all others keep their targets: `partly_labelled`.
            public_without: Classes and domains that the public samples lack. The scale of inputs
                and the words of a pocket model still come from all public samples.
            sample_rate: Probability that a client's sample has a modality that the client has.
            num_workers: Worker processes of each training `DataLoader`.
            seed: Seed of partition, splits and masks; runs with another training seed keep it.
            schedule: How the clients' private data change over the rounds; by default they do not.
            pretrain_on: What a pocket model has seen: `PretrainOn`; by default `pretraining_pairs`.

        Raises:
            ValueError: If a value is out of range.
        """
        super().__init__()
        ranges = {
            "batch_size": (batch_size >= 1, "at least 1", batch_size),
            "eval_batch_size": (eval_batch_size >= 1, "at least 1", eval_batch_size),
            "alpha": (alpha > 0, "positive", alpha),
            "val_fraction": (0 <= val_fraction < 1, "in [0, 1)", val_fraction),
            "public_train_fraction": (
                0 < public_train_fraction <= 1,
                "in (0, 1]",
                public_train_fraction,
            ),
            "sample_rate": (0 < sample_rate <= 1, "in (0, 1]", sample_rate),
            "num_workers": (num_workers >= 0, "at least 0", num_workers),
        }
        wrong = [
            f"data.init_args.{k} must be {allowed}, got {v}"
            for k, (ok, allowed, v) in ranges.items()
            if not ok
        ] + labelled_faults(public_labelled)
        if wrong:
            raise ValueError("; ".join(wrong))
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.partition = partition
        self.alpha = alpha
        self.val_fraction = val_fraction
        self.public_train_fraction = public_train_fraction
        self.public_labelled = public_labelled
        self.public_without = public_without
        self.sample_rate = sample_rate
        self.num_workers = num_workers
        self.seed = seed
        self.schedule = schedule
        self.pretrain_on = pretrain_on
        self.held: Collection[str] | None = None
        """The clients whose private samples are here, None for all; to be set before `attach`."""
        self._pools: Pools | None = None
        self._public: dict[str, SampleTable] = {}
        self._private: dict[str, dict[Split, SampleTable]] = {}

    # Implemented by each data set -----------------------------------------------------------

    @abstractmethod
    def load_pools(self) -> Pools:
        """Read the data set.

        Raises:
            FileNotFoundError: If files are missing; the message names ``data.init_args.root``.
        """

    @abstractmethod
    def read_label(self, text: str) -> int | None:
        """Return the class that a generated sentence names, ``None`` if it names no single one."""

    @abstractmethod
    def pretraining_pairs(self) -> list[tuple[str, str]]:
        """Return the (key words, sentence) pairs that a pocket backbone is pretrained on.

        They must not contain private samples, only the words and sentence forms of the targets.
        """

    @property
    def preparations(self) -> dict[str, Preparation]:
        """How a raw input of each modality is turned into what a model reads.

        By default an input must already look like those of the data set.
        """
        return {name: Preparation(declared) for name, declared in self._declared().items()}

    def _declared(self) -> dict[str, Declared]:
        return {name: Declared.of(spec) for name, spec in self.modalities.items()}

    def prepare_as(self, preparations: Mapping[str, Preparation]) -> None:
        """Prepare inputs as in an earlier training run, for predictions of its models.

        Args:
            preparations: `preparations` of that run.

        Raises:
            ValueError: If a modality is declared differently here; all faults in one message.
        """
        here = self._declared()
        there = {m: p.declared for m, p in preparations.items()}
        faults = FaultList(
            f"data.init_args.modalities.{name} is {here.get(name)}, but the models were trained "
            f"with {there.get(name)}"
            for name in {**there, **here}
            if here.get(name) != there.get(name)
        )
        faults.raise_any()

    # Dealing the samples to clients ---------------------------------------------------------

    def needs(self) -> tuple[Need, ...]:
        """Return the optional packages without which no sample can be loaded."""
        return ()

    @property
    def pools(self) -> Pools:
        """The pools, loaded on first use."""
        if self._pools is None:
            require(*self.needs())
            self._pools = self.load_pools()
        return self._pools

    def setup(self, stage: str | None = None) -> None:
        """Load the data set and split the public samples; the same for every stage."""
        if not self._public:
            train, val = (
                lacking(table, self.public_without, self.classes) for table in self._public_split()
            )
            check_without(self.public_without, self.pools.public, left=len(train))
            kept, _ = split_groups(train.groups, 1 - self.public_train_fraction, seed=self.seed)
            known = partly_labelled(
                train.select(kept), self.public_labelled, seed=self.seed, classes=self.classes
            )
            self._public = {"train": known, "val": val}

    def _public_split(self) -> tuple[SampleTable, SampleTable]:
        """Return the public samples for training, and the labelled ones for validation."""
        return split_public(self.pools.public, self.val_fraction, seed=self.seed)

    def attach(self, clients: Mapping[str, ClientProfile]) -> None:
        """Deal the private pool and the test pool to the clients.

        Args:
            clients: The clients, by name.

        Raises:
            ValueError: If a client names an unknown modality or domain, has no modality, names
                domains although the partition ignores them, or gets no private samples, or if the
                schedule does not fit the clients. One message holds all faults.
        """
        self.setup()
        faults = FaultList(client_faults(clients, self.modalities, partition=self.partition))
        faults += modality_name_faults(self.modalities, key="data: modalities")
        dealt = faults.attempt(
            deal,
            self.pools.private,
            self.pools.test,
            clients,
            held=self.held,
            partition=self.partition,
            classes=len(self.classes),
            alpha=self.alpha,
            seed=self.seed,
        )
        faults.raise_any()
        assert dealt is not None
        train_rows, test_rows = dealt
        private: dict[str, dict[Split, SampleTable]] = {}
        held_out = hold_out(
            self.pools.private,
            train_rows,
            self.val_fraction,
            partition=self.partition,
            seed_of=lambda name: self._seed(name, "val"),
        )
        for name, (train, val) in held_out.items():
            splits: dict[Split, SampleTable] = {
                "train": self.pools.private.select(train),
                "val": self.pools.private.select(val),
                "test": self.pools.test.select(test_rows[name]),
            }
            private[name] = {
                split: self._as_seen_by(table, clients[name], seed=self._seed(name, split))
                for split, table in splits.items()
            }
        if self.schedule is not None and self.held is None:
            FaultList(
                self.schedule.faults({name: s["train"] for name, s in private.items()})
            ).raise_any()
        self._private = private

    def _as_seen_by(self, table: SampleTable, profile: ClientProfile, *, seed: int) -> SampleTable:
        """Keep the client's modalities, and drop each of them in some samples (`sample_rate`)."""
        seen = self._sensed_by(table, profile)
        if self.sample_rate == 1.0:
            return seen
        return seen.mask(draw_sample_mask(seen.present, rate=self.sample_rate, seed=seed))

    def _sensed_by(self, table: SampleTable, profile: ClientProfile) -> SampleTable:
        """Keep the client's modalities."""
        return table.restrict(profile.modalities)

    def _seed(self, client: str, purpose: str) -> int:
        """Return a seed that depends on the client's name, not on its position among the others."""
        return zlib.crc32(f"{self.seed}/{client}/{purpose}".encode())

    # Access ---------------------------------------------------------------------------------

    def public(
        self, split: Split = "train", *, modalities: Sequence[str] | None = None
    ) -> SampleTable:
        """Return public samples.

        Args:
            split: Which part; ``test`` is the held-out pool of all domains.
            modalities: Keep only these, for a client; by default all, for the server.
        """
        self.setup()
        table = self.pools.test if split == "test" else self._public[split]
        return table if modalities is None else table.restrict(modalities)

    def private(
        self, client: str, split: Split = "train", *, round: int | None = None
    ) -> SampleTable:
        """Return the private samples of a client; ``test`` is the held-out part of its own domain.

        Args:
            client: The client.
            split: Which part.
            round: With a schedule, return only what the client sees in this round; ``None`` returns
                all samples that it ever holds.

        Raises:
            KeyError: If the client is not attached.
        """
        if client not in self._private:
            raise KeyError(f"unknown client {client!r}, attached: {list(self._private)}")
        table = self._private[client][split]
        if round is None or self.schedule is None:
            return table
        seed = self._seed(client, f"schedule/{split}")
        return self.schedule.view(table, client=client, round=round, seed=seed)

    def resources(self, client: str, *, round: int) -> float:
        """Return a client's budget in a round, as a multiple of the configured one."""
        return 1.0 if self.schedule is None else self.schedule.resources(client, round)

    def held_out(
        self, client: str, profile: ClientProfile, *, table: SampleTable | None = None
    ) -> SampleTable:
        """Return the held-out samples of all domains with the modalities of one client.

        Args:
            client: The client.
            profile: Its modalities.
            table: Use these samples instead, with all that they have: they are to be answered.
        """
        if table is not None:
            return self._sensed_by(table, profile)
        return self._as_seen_by(self.pools.test, profile, seed=self._seed(client, "all"))

    def pooled(self, modalities: Sequence[str] | None = None) -> SampleTable:
        """Return the private training samples of all clients in one table.

        Each sample has the modalities that its client sees. Only for the upper bound that
        `Centralized` measures: no other algorithm may use this table.

        Args:
            modalities: Keep only these; samples that have none of them are left out.
        """
        wanted = tuple(self.modalities if modalities is None else modalities)
        held = [splits["train"] for splits in self._private.values()]
        return pooled(self.pools.private.restrict(wanted), held)

    def loader(
        self, table: SampleTable, *, limit: int | None = None, shard: tuple[int, int] = (0, 1)
    ) -> SeededLoader:
        """Return the training loader of a table.

        Args:
            table: The samples.
            limit: Maximum number of batches per training pass.
            shard: Rank and number of the processes that share every batch.
        """
        size, workers = self.batch_size, self.num_workers
        return SeededLoader(table, batch_size=size, num_workers=workers, limit=limit, shard=shard)

    def asked(self, *, others: Collection[str] = ()) -> SampleTable:
        """Return the samples that `predict` answers: the held-out samples of all domains.

        A sample without a known answer has an empty target.

        Args:
            others: Leave out samples that belong to these clients, where the data say so.
        """
        return self.pools.test

    # Lightning hooks, for training the server alone on public data --------------------------

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the server's public training batches, shuffled."""
        return DataLoader(
            self.public("train"),
            batch_size=self.batch_size,
            shuffle=True,
            drop_last=len(self.public("train")) > self.batch_size,
            collate_fn=whole_batch,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the server's public validation batches."""
        return sequential_loader(self.public("val"), self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the held-out batches of all domains, with all modalities."""
        return sequential_loader(self.public("test"), self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the same batches as `test_dataloader`."""
        return self.test_dataloader()
