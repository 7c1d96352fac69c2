"""The warm-up as a command: Lightning's own `Trainer` trains the server on public data.

It runs on as many processes and nodes as `Trainer` can use, with its callbacks, loggers and
checkpoints. A `fit` can start from its checkpoint (``trainer.warmup_ckpt_path``). In one process
the result is that of the warm-up inside `fit`: the same initial weights, batches and random
numbers.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.fabric import Fabric, seed_everything
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader

from mlecs_lightning.checkpoints.frozen import check_ranks
from mlecs_lightning.checkpoints.warmup import load_warmup, read_warmup, saved_moments
from mlecs_lightning.checkpoints.warmup_files import CheckedIO, ClaimedLog
from mlecs_lightning.clients.backbones import check_lengths
from mlecs_lightning.clients.federation import build_server
from mlecs_lightning.clients.parties import Parties
from mlecs_lightning.clients.ranks import check_precision
from mlecs_lightning.clients.settings import Federation
from mlecs_lightning.data import FederatedDataModule, SeededLoader
from mlecs_lightning.data.sampling import sequential_loader, whole_batch
from mlecs_lightning.differences import differences
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.modules import Objective, ServerModule
from mlecs_lightning.modules.contents import content_header
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.rounds.context import RoundContext
from mlecs_lightning.rounds.learner import NonFiniteError
from mlecs_lightning.storage.digests import write_checked
from mlecs_lightning.storage.paths import expanded
from mlecs_lightning.storage.yaml_text import dump_yaml
from mlecs_lightning.types import Batch

__all__ = ["INHERITED", "OWN", "ServerWarmup", "load_warmup"]

INHERITED = (
    *("accelerator", "devices", "num_nodes", "strategy", "precision", "gradient_clip_val"),
    *("limit_val_batches", "fast_dev_run", "enable_progress_bar", "default_root_dir"),
)
"""Options of Lightning's `Trainer` that ``warmup`` takes from ``trainer`` unless it sets them."""

_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("accelerator", "devices", "strategy"), "auto"),
    "num_nodes": 1,
    "gradient_clip_val": 1.0,
}

OWN = frozenset(
    {"max_epochs", "min_epochs", "min_steps", "limit_train_batches", "overfit_batches"}
    | {"use_distributed_sampler", "reload_dataloaders_every_n_epochs"}
)
"""Options of `Trainer` that the warm-up sets itself: it is one pass of ``max_steps`` steps."""

_FOUND_BY_LIGHTNING = ("last", "hpc")

log = logging.getLogger(__name__)


@runtime_checkable
class _WarmsUp(Protocol):
    """What a warm-up needs of an algorithm besides `Algorithm.prepare`."""

    steps: Any

    def warmup_objective(self) -> Objective | None:
        """Return the objective of the warm-up; L_LM of the LLM by default."""


class _Server:
    """The server as `Algorithm.prepare` sees it."""

    def __init__(self, module: ServerModule) -> None:
        self.name, self.module = "server", module


class ServerWarmup:
    """Trains the server with Lightning's `Trainer`.

    Attributes:
        config: What ``config.yaml`` says of the run; the command line sets it.
        trainer: The `Trainer` of the last `warmup`.
        module: The server that it trained.
    """

    def __init__(
        self, options: Mapping[str, Any], *, trainer: Mapping[str, Any] | None = None
    ) -> None:
        """Set the options.

        Args:
            options: Arguments of `lightning.Trainer`, key ``warmup``; ``None`` means not given.
            trainer: Arguments of the `FederatedTrainer`, used for those not given.
        """
        given = {k: v for k, v in options.items() if v is not None}
        trainer = trainer or {}
        self._options = _DEFAULTS | {k: trainer[k] for k in INHERITED if k in trainer} | given
        if "default_root_dir" in self._options:
            root = self._options["default_root_dir"]
            self._options["default_root_dir"] = expanded(root, key="warmup.default_root_dir")
        self._limit = 1 if trainer.get("fast_dev_run") else trainer.get("limit_train_batches")
        self.config: Mapping[str, Any] = {}
        self.trainer: L.Trainer | None = None
        self.module: ServerModule | None = None

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the process that prints and writes for all."""
        return self.trainer is None or self.trainer.is_global_zero

    def warmup(
        self,
        algorithm: Algorithm,
        datamodule: FederatedDataModule,
        federation: Federation,
        ckpt_path: str | None = None,
    ) -> Path | None:
        """Train the server alone on public data, with Lightning's own Trainer.

        Args:
            algorithm: Has the objective and the number of steps.
            datamodule: The data.
            federation: Server, edges and clients.
            ckpt_path: A checkpoint of this warm-up to resume from: a file, or ``last`` if a
                `ModelCheckpoint` with a folder of its own keeps one.

        Returns:
            The checkpoint, if one was written: the best one if a callback monitors a value.

        Raises:
            ValueError: If the settings do not fit together.
            CheckpointError: If the checkpoint cannot be used.
            NonFiniteError: If the weights are not finite at the end.
            SystemExit: After SIGTERM, as Lightning does at the end of a batch; with 143.
        """
        parties = Parties.resolve(federation, algorithm, datamodule)
        if not isinstance(algorithm, _WarmsUp):
            raise ConfigurationError(
                f"algorithm: {type(algorithm).__name__} has no steps.warmup and warmup_objective"
            )
        steps = int(self._options.get("max_steps", algorithm.steps.warmup))
        batches = steps * (every := int(self._options.get("accumulate_grad_batches", 1)))
        if self._limit is not None:
            batches = min(batches, self._limit)
        if batches < 1:
            raise ConfigurationError(
                f"warmup.max_steps is {steps}, trainer.limit_train_batches {self._limit}: set the "
                "first (or algorithm.init_args.steps.warmup) to at least 1, and the second or none"
            )
        # Round -1, as in the federated loop.
        ctx = RoundContext(-1, parties.seed, tuple(parties.profiles))
        public = _PublicData(datamodule, batches=batches, ctx=ctx)
        steps = -(-batches // every)
        self.trainer = self._build_trainer(steps, ctx)
        check_lengths(parties, datamodule, algorithm, clients=False)
        self.module = build_server(parties, datamodule, algorithm)
        algorithm.prepare(_Server(self.module), {})  # type: ignore[arg-type]
        self.module.objective = algorithm.warmup_objective()
        if ckpt_path is not None and ckpt_path not in _FOUND_BY_LIGHTNING:
            ckpt_path = str(expanded(ckpt_path, key="ckpt_path"))
            read_warmup(Path(ckpt_path), self.module, key="ckpt_path")
        try:
            self.trainer.fit(self.module, datamodule=public, ckpt_path=ckpt_path, weights_only=True)
        except MisconfigurationException as error:
            raise ConfigurationError(f"warmup: {error}") from error
        except SIGTERMException:
            raise SystemExit(128 + signal.SIGTERM) from None  # Lightning's own says 0: all is well
        saved = self.trainer.checkpoint_callback
        if not isinstance(saved, ModelCheckpoint):
            return None
        path = saved.best_model_path or saved.last_model_path
        return Path(path) if path else None

    def _build_trainer(self, steps: int, ctx: RoundContext) -> L.Trainer:
        options = {**self._options, "max_steps": steps, "use_distributed_sampler": False}
        check_precision(options.get("precision"), options["accelerator"])
        elastic = TorchElasticEnvironment.detect()
        if elastic and options["devices"] == "auto" and options["accelerator"] in ("auto", "cpu"):
            # On the CPU, Lightning takes auto as one process, even if torchrun has started more.
            gpus = options["accelerator"] == "auto" and torch.cuda.is_available()
            options["devices"] = "auto" if gpus else int(os.environ["LOCAL_WORLD_SIZE"])
        callbacks = options.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        config = {} if options.get("fast_dev_run") else self.config
        options["callbacks"] = [_AsInFederation(ctx, config), *callbacks]
        plugins = options.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            options["plugins"] = [*plugins, CheckedIO()]
        try:
            options["strategy"] = _strategy(options)
            trainer = L.Trainer(**options)
        except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
            raise ConfigurationError(f"warmup: {error}") from error
        started = int(os.environ["WORLD_SIZE"]) if elastic else trainer.world_size
        if trainer.world_size != started:
            raise ConfigurationError(
                f"warmup.devices and warmup.num_nodes (or those of trainer) are for "
                f"{trainer.world_size} processes, torchrun has started {started}; on the CPU "
                "set devices to the processes of a node and num_nodes to the nodes"
            )
        # A job of SLURM has a number of its own.
        usual = options.get("logger") in (None, True) and SLURMEnvironment.job_id() is None
        if usual and isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger = ClaimedLog(trainer.default_root_dir)
        return trainer


def _strategy(options: Mapping[str, Any]) -> Any:  # noqa: ANN401 - as in Lightning
    """Return the strategy; under DDP it allows parameters without a gradient.

    The readout of the server's representations has none unless an objective contrasts them.
    """
    asked = options["strategy"]
    if asked not in ("auto", "ddp"):
        return asked
    # Fabric resolves `auto` without printing anything.
    known = {k: options[k] for k in ("accelerator", "devices", "num_nodes", "strategy")}
    ddp = isinstance(Fabric(**known).strategy, DDPStrategy)
    return "ddp_find_unused_parameters_true" if ddp else asked


class _AsInFederation(L.Callback):
    """Makes Lightning's training equal to the warm-up inside `fit`."""

    def __init__(self, ctx: RoundContext, config: Mapping[str, Any]) -> None:
        self._seed, self._config = ctx.seed_for("server", "warmup"), config
        self._saved: list[Tensor] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Shard the batches; compare the ranks; write the configuration beside the logs."""
        assert isinstance(pl_module, ServerModule)
        pl_module.sharded = trainer.world_size > 1
        frozen = pl_module.frozen_contents()
        if pl_module.sharded:
            everywhere = [frozen] * trainer.world_size
            torch.distributed.all_gather_object(everywhere, frozen)
            check_ranks(everywhere)
        folder = trainer.log_dir  # all ranks must ask
        if self._config and folder and trainer.loggers and trainer.is_global_zero:
            Path(folder).mkdir(parents=True, exist_ok=True)
            text = content_header(frozen) + dump_yaml(self._config)
            write_checked(Path(folder) / "config.yaml", text)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed as the federated loop does; ranks draw different dropout masks."""
        seed_everything((self._seed + trainer.global_rank) % 2**32, verbose=False)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Restore the random state of a checkpoint, after the loaders have drawn from it."""
        if len(self._saved) == trainer.world_size:
            _set_rng(self._saved[trainer.global_rank], pl_module.device)
        self._saved = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End with the pass; refuse weights that are not finite, before they are saved."""
        trainer.should_stop = True
        assert isinstance(pl_module, ServerModule)
        norm = torch.nn.utils.get_total_norm([p.detach() for p in pl_module.trainable_parameters()])
        if not bool(torch.isfinite(norm)):
            raise NonFiniteError(
                "server: weights are not finite after stage 'warmup'; a smaller learning rate or "
                "precision 32-true may help"
            )

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the random state of every rank."""
        own = _get_rng(pl_module.device)
        states: list[Tensor] = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, own)
        checkpoint["rng_states"] = states

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the random state until training begins.

        If the optimiser has other settings now, these apply; Lightning would restore the old ones.
        """
        assert isinstance(pl_module, ServerModule)
        self._saved = checkpoint.get("rng_states", [])
        saved = checkpoint["hyper_parameters"]["settings"]["optimizer"]
        if changed := differences(saved, pl_module.settings.optimizer):
            log.warning("ckpt_path: server.optimizer: %s", "; ".join(changed.values()))
            present = pl_module.configure_optimizers().state_dict()
            moments = saved_moments(checkpoint, pl_module) or present["state"]
            checkpoint["optimizer_states"] = [{**present, "state": moments}]


def _get_rng(device: torch.device) -> Tensor:
    """Return the state of the generator that dropout uses."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_rng(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state.cpu(), device)
    else:
        torch.set_rng_state(state.cpu())


class _Pass:
    """The batches of the warm-up; a resumed run continues with the next one."""

    def __init__(self, loader: SeededLoader, batches: int, *, seed: int) -> None:
        self._loader, self._batches, self._seed = loader, batches, seed
        self._taken = 0

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader.take(self._batches, seed=self._seed, start=self._taken):
            self._taken += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"taken": self._taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._taken = state["taken"]


class _PublicData(L.LightningDataModule):
    """The public split for `Trainer`, sharded over the processes."""

    def __init__(self, data: FederatedDataModule, *, batches: int, ctx: RoundContext) -> None:
        super().__init__()
        self._data, self._batches = data, batches
        self._seed = ctx.seed_for("server", "public")

    def _shard(self) -> tuple[int, int]:
        assert self.trainer is not None
        return self.trainer.global_rank, self.trainer.world_size

    def train_dataloader(self) -> _Pass:
        """Return this process's rows of each batch."""
        loader = self._data.loader(self._data.public("train"), shard=self._shard())
        return _Pass(loader, self._batches, seed=self._seed)

    def val_dataloader(self) -> DataLoader[Batch] | list[Batch]:
        """Return whole batches, distributed over the processes; all if there are too few."""
        table = self._data.public("val")
        if not len(table):
            return []
        rank, size = self._shard()
        batches = list(sequential_loader(table, self._data.eval_batch_size).batch_sampler or ())
        mine = batches[rank::size] if len(batches) >= size else batches
        return DataLoader(table, batch_sampler=mine, collate_fn=whole_batch)
