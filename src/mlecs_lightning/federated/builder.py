"""Builds the run of a trainer: checks, launches, builds and, from a checkpoint, restores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric import Fabric
from lightning.pytorch.utilities import rank_zero_warn

from mlecs_lightning.callbacks.monitor import Monitor
from mlecs_lightning.checkpoints.checkpoint import CheckpointError, check_config, load_checkpoint
from mlecs_lightning.checkpoints.client_store import DiskStore, MemoryStore
from mlecs_lightning.checkpoints.frozen import check_saved
from mlecs_lightning.checkpoints.warmup import load_warmup
from mlecs_lightning.clients.federation import FederationModels
from mlecs_lightning.clients.parties import Parties
from mlecs_lightning.clients.ranks import process_count
from mlecs_lightning.clients.schedules import check_rounds
from mlecs_lightning.clients.settings import Federation
from mlecs_lightning.cohorts.registry import Cohorts
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.evaluation.parties import Evaluator
from mlecs_lightning.extras import require
from mlecs_lightning.federated.exchange.coverage import (
    accountant_of,
    check_coverage,
    check_privacy,
)
from mlecs_lightning.federated.monitoring import DEFAULT_MONITOR, check_monitor
from mlecs_lightning.federated.run import Run
from mlecs_lightning.federated.run_folder import RunFolder, RunVersions
from mlecs_lightning.federated.settings import TrainerSettings
from mlecs_lightning.modules import EdgeModule
from mlecs_lightning.rounds.algorithm import Algorithm, Loaders
from mlecs_lightning.rounds.participation import Limit
from mlecs_lightning.storage.files import remove_leftovers
from mlecs_lightning.wire import Schema
from mlecs_lightning.wire.channel import Channel
from mlecs_lightning.wire.codec import Direction

__all__ = ["RunBuilder"]


class _Origin(NamedTuple):
    """The checkpoint that a run starts from.

    Attributes:
        path: Its file.
        state: What `load_checkpoint` returned.
        version: The version of the run that it lies in, ``None`` if it lies elsewhere.
    """

    path: Path
    state: dict[str, Any]
    version: str | None


@dataclass(frozen=True)
class RunBuilder:
    """Builds the run of one call of a trainer.

    Attributes:
        settings: The trainer's.
        fabric: The trainer's; launched on the way.
        config: What `config.yaml` and checkpoints say of the run; empty if it has none.
        algorithm: The method.
        data: The data.
        training: Whether the run will train. Only training writes log and configuration: an
            evaluation leaves those of its run alone.
        remote: Whether the clients train elsewhere, so that only the server's data are here.
    """

    settings: TrainerSettings
    fabric: Fabric
    config: Mapping[str, Any]
    algorithm: Algorithm
    data: FederatedDataModule
    training: bool = True
    remote: bool = False

    def build(self, parties: Federation, ckpt_path: str | None) -> Run:
        """Check, launch, build and, with a checkpoint, restore.

        Args:
            parties: Server, edges and clients.
            ckpt_path: ``last``, ``best`` or a file; an evaluation needs one.

        Raises:
            ConfigurationError: If the settings do not fit together, or a package is missing that
                they need.
            CheckpointError: If the checkpoint cannot be used.
        """
        require(*self.data.needs(), *self.algorithm.needs(), *self.settings.needs())
        origin = self._origin(ckpt_path)
        self.data.held = () if self.remote else None
        resolved = Parties.resolve(parties, self.algorithm, self.data)
        rounds = self.settings.max_rounds if self.training else 0
        check_rounds(resolved, self.settings.loop, rounds=rounds)
        if self.training:
            coded = self.settings.codec is not None
            check_privacy(resolved, self.algorithm, self.settings.loop, coded=coded)
        self._check_batch_size()
        if self.remote and (self.settings.limit_eval_clients or self.settings.limit_test_clients):
            rank_zero_warn(
                "trainer.limit_eval_clients and limit_test_clients have no effect here: devices on "
                "a network score themselves, at the end of the run"
            )
        self.fabric.launch()
        # Early, so that a missing BERTScore model does not show only at the end.
        tester = self.evaluator(
            self.settings.limit_test_batches,
            bertscore=True,
            limit_clients=None if self.remote else self.settings.limit_test_clients,
        )
        federation = self._federation(resolved, origin)
        folder = self._open_folder(federation, origin)
        run = self._assemble(federation, folder, tester, origin)
        try:
            self._restore(run, origin)
        except (CheckpointError, ConfigurationError):
            folder.discard()
            raise
        if self.training:
            run.begin(None if origin is None else origin.state)
        return run

    @property
    def versions(self) -> RunVersions:
        """The folder with all versions of the run."""
        usual = f"{type(self.algorithm).__name__}-{type(self.data).__name__}"
        return RunVersions(self.settings.root, self.settings.name or usual, self._monitor())

    def evaluator(
        self, limit: int | None, *, bertscore: bool, limit_clients: Limit = None
    ) -> Evaluator:
        """Return an evaluator of the run.

        Args:
            limit: Maximum number of batches per evaluation.
            limit_clients: As in `Evaluator`.
            bertscore: Whether it has BERTScore, where the trainer asks for that.

        Raises:
            ConfigurationError: If the model of BERTScore cannot be loaded.
        """
        wanted = self.settings.bertscore if bertscore else False
        rouge = self.settings.rouge
        try:
            return Evaluator(
                self.data,
                fabric=self.fabric,
                bertscore=wanted,
                limit=limit,
                rouge=rouge,
                limit_clients=limit_clients,
            )
        except (OSError, ValueError, ModuleNotFoundError) as error:
            raise ConfigurationError(f"trainer.bertscore: {error}") from error

    # The steps of `build` ---------------------------------------------------------------------

    def _origin(self, ckpt_path: str | None) -> _Origin | None:
        """Find and read the checkpoint, and compare its configuration where both have one."""
        if ckpt_path is None and self.training:
            return None
        path, version = self.versions.find(ckpt_path)
        state = load_checkpoint(path)
        if self.training and not self.settings.allow_other_config:
            check_config(state["config"], self.config)
        return _Origin(path, state, version)

    def _check_batch_size(self) -> None:
        """Refuse more processes than a batch has samples.

        Before the launch: ranks that leave a rendezvous at once leave others waiting in it.
        """
        number = process_count(self.fabric)
        if self.data.batch_size < number:
            raise ConfigurationError(
                f"data.init_args.batch_size is {self.data.batch_size}: the {number} processes of "
                "trainer.devices and num_nodes share every batch of the server"
            )

    def _federation(self, parties: Parties, origin: _Origin | None) -> FederationModels:
        settings = self.settings
        federation = FederationModels(
            parties,
            self.data,
            fabric=self.fabric,
            gradient_clip_val=settings.gradient_clip_val,
            algorithm=self.algorithm,
            remote=self.remote,
        )
        if origin is not None:
            check_saved(
                origin.state.get("about"),
                federation.frozen,
                path=origin.path,
                any=settings.allow_other_config,
            )
        federation.prepare(self.algorithm, coded=settings.codec is not None)
        self._warn_of_idle_codec(federation.module(federation.clients[0]))
        if self.training and settings.loop.privacy is not None:
            check_coverage(federation, self.algorithm)
        if self.training and origin is None and settings.warmup_ckpt_path is not None:
            server = federation.server
            load_warmup(settings.warmup_ckpt_path, server.module, server.optimizer)
        return federation

    def _warn_of_idle_codec(self, edge: EdgeModule) -> None:
        """Warn if the codec changes no message between the server and a client."""
        codec, algorithm = self.settings.codec, self.algorithm
        if codec is None or not algorithm.communicates or not self.training:
            return
        ways: tuple[tuple[Direction, Schema], ...]
        ways = ("uplink", algorithm.uplink(edge)), ("downlink", algorithm.downlink(edge))
        if all(codec.declare(schema, way).tensors == schema.tensors for way, schema in ways):
            rank_zero_warn(
                f"trainer.codec: {type(codec).__name__} shortens no message of "
                f"{type(algorithm).__name__}, which sends no whole adapter; leave the codec out, "
                "or set its feature_bits below 32"
            )

    def _open_folder(self, federation: FederationModels, origin: _Origin | None) -> RunFolder:
        """Open the run folder on all ranks, and keep the clients' states where they belong."""
        ranks, versions = federation.ranks, self.versions
        version = None if origin is None else origin.version
        if self.training and version and not ranks.rank:  # the others wait in `RunVersions.open`
            remove_leftovers(versions.path / version)
        logger = self.training and self.settings.logger
        folder = versions.open(ranks, version=version, logger=logger)
        if self.settings.store == "disk":
            federation.store = DiskStore(folder.checkpoints / "clients")
        elif self.training and self.settings.checkpointing:
            federation.store = MemoryStore(folder.checkpoints)
        return folder

    def _assemble(
        self,
        federation: FederationModels,
        folder: RunFolder,
        tester: Evaluator,
        origin: _Origin | None,
    ) -> Run:
        settings, data, ranks = self.settings, self.data, federation.ranks
        shard, limit = (ranks.rank, ranks.size), settings.loop.limit_train
        public = data.loader(data.public("train"), limit=limit, shard=shard)
        pooled = None
        if self.algorithm.pools_private:
            pooled = data.loader(data.pooled(), limit=limit, shard=shard)
        return Run(
            self.algorithm,
            data,
            federation,
            self.evaluator(
                settings.limit_val_batches,
                bertscore=False,
                limit_clients=None if self.remote else settings.limit_eval_clients,
            ),
            tester,
            Channel(settings.message_limits, codec=settings.codec),
            folder,
            Loaders(public, pooled, checks=data.public("val")),
            fabric=self.fabric,
            config=self.config,
            monitor=self._monitor(),
            arguments=settings.compared(),
            in_place=origin is not None and origin.version is not None,
            cohorts=None
            if settings.loop.cohort == 1 or self.remote
            else Cohorts(federation, data, settings.loop.cohort),
            accountant=accountant_of(settings.loop, federation.parties.groups.values()),
        )

    def _monitor(self) -> Monitor:
        """Return the monitored value; by default the server's where clients are not scored."""
        monitor = self.settings.monitor
        by_default = self.remote and monitor.name == DEFAULT_MONITOR
        return Monitor("server/val/loss", "min") if by_default else monitor

    def _restore(self, run: Run, origin: _Origin | None) -> None:
        """Restore the checkpoint, and check what can only be checked of a run."""
        settings = self.settings
        if origin is not None:
            if self.training and not settings.allow_other_config:
                run.check(origin.state)
            run.restore(origin.state, path=origin.path, same_data=not settings.allow_other_config)
        if self.training:
            check_monitor(
                run,
                settings.loop,
                max_rounds=settings.max_rounds,
                save_top_k=settings.save_top_k if settings.checkpointing else 0,
            )
