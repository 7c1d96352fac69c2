"""The federated loop: rounds of broadcast, client updates, aggregation and server update."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.fabric import Fabric, seed_everything
from lightning.fabric.loggers.logger import Logger

from mlecs_lightning.callbacks import FederatedCallback, RichProgress
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.federated.algorithm import Algorithm, Loaders
from mlecs_lightning.federated.channel import Channel
from mlecs_lightning.federated.checkpoint import (
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from mlecs_lightning.federated.context import RoundContext
from mlecs_lightning.federated.evaluation import Evaluator
from mlecs_lightning.federated.federation import Federation, FederationSettings, Parties
from mlecs_lightning.federated.messages import Message
from mlecs_lightning.federated.output import RunFolder, communication
from mlecs_lightning.settings import ConfigurationError

__all__ = ["FederatedTrainer", "Precision"]

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass
class _Run:
    """Everything that belongs to one call of a trainer."""

    algorithm: Algorithm
    data: FederatedDataModule
    federation: Federation
    evaluator: Evaluator
    channel: Channel
    folder: RunFolder
    server_loaders: Loaders
    history: list[dict[str, float]]
    warmup: dict[str, float]
    next_round: int = 0
    seconds: float = 0.0


class FederatedTrainer:
    """Runs a federation on Fabric; its options have Lightning's names wherever Lightning has one.

    Example:
        >>> from mlecs_lightning import Digits, FederatedTrainer, MLECS  # doctest: +SKIP
        >>> trainer = FederatedTrainer(max_rounds=3)  # doctest: +SKIP
        >>> trainer.fit(MLECS(), Digits(), federation)["mean"]  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        max_rounds: int = 5,
        accelerator: str = "auto",
        devices: int | str = "auto",
        num_nodes: int = 1,
        strategy: str = "auto",
        precision: Precision = "32-true",
        gradient_clip_val: float | None = 1.0,
        check_val_every_n_rounds: int = 1,
        limit_train_batches: int | None = None,
        limit_val_batches: int | None = None,
        limit_test_batches: int | None = None,
        fast_dev_run: bool = False,
        bertscore: bool | str = False,
        max_message_norm: float | None = None,
        monitor: str = "clients/val/loss",
        enable_checkpointing: bool = True,
        enable_progress_bar: bool = True,
        logger: bool | list[Logger] = True,
        callbacks: list[FederatedCallback] | None = None,
        default_root_dir: str | Path = "runs",
        name: str | None = None,
    ) -> None:
        """Set up the trainer; nothing is launched before `fit`, `validate`, `test` or `predict`.

        Args:
            max_rounds: Rounds of a fit.
            accelerator: As in Fabric.
            devices: As in Fabric.
            num_nodes: As in Fabric.
            strategy: As in Fabric.
            precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
            gradient_clip_val: Largest gradient norm of a step; 1.0 in the reference configuration.
            check_val_every_n_rounds: Validate after every n-th round; 0 never.
            limit_train_batches: Most batches of a training pass.
            limit_val_batches: Most batches of a validation.
            limit_test_batches: Most batches of a test or prediction.
            fast_dev_run: One round, one batch of everything, no checkpoint: does it run at all?
            bertscore: Add BERTScore to the test: true for the small model of the extra
                ``bertscore``, or a hub id or directory.
            max_message_norm: The channel refuses a message of a larger norm.
            monitor: The validation value, smaller is better, that ``--ckpt_path best`` goes by.
            enable_checkpointing: Write a checkpoint after every round.
            enable_progress_bar: Show the progress.
            logger: False for none, true for metrics.csv and TensorBoard, or Fabric loggers.
            callbacks: Told what happens.
            default_root_dir: Folder of all runs.
            name: Name of the run; algorithm and data set by default.

        Raises:
            ValueError: If a number is out of range.
        """
        limits = (limit_train_batches, limit_val_batches, limit_test_batches)
        if max_rounds < 1 or min(check_val_every_n_rounds, *(n or 0 for n in limits)) < 0:
            raise ValueError(
                "trainer.max_rounds must be at least 1, check_val_every_n_rounds and "
                "limit_{train,val,test}_batches at least 0, got "
                f"{max_rounds}, {check_val_every_n_rounds} and {limits}"
            )
        self.max_rounds = 1 if fast_dev_run else max_rounds
        self._fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=precision,
        )
        self._num_nodes = num_nodes
        self._clip = gradient_clip_val
        self._val_every = check_val_every_n_rounds
        self._limit_train, self._limit_val, self._limit_test = (1, 1, 1) if fast_dev_run else limits
        self._bertscore = bertscore
        self._max_norm = max_message_norm
        self._monitor = monitor
        self._checkpointing = enable_checkpointing and not fast_dev_run
        self._logger = logger
        self._callbacks = [*(callbacks or []), *([RichProgress()] if enable_progress_bar else [])]
        self._root, self._name = Path(default_root_dir), name
        self.config: Mapping[str, Any] = {}
        """What `config.yaml` and the checkpoint say of the run; the command line sets it."""

    # Entry points ---------------------------------------------------------------------------

    def fit(
        self,
        algorithm: Algorithm,
        datamodule: FederatedDataModule,
        federation: FederationSettings,
        ckpt_path: str | None = None,
    ) -> dict[str, Any]:
        """Train the federation, test it, and write the run folder.

        Args:
            algorithm: The method.
            datamodule: The data.
            federation: Server, edges and clients.
            ckpt_path: ``last``, ``best`` or a checkpoint file to go on from.

        Returns:
            The summary, as in ``summary.json``.

        Raises:
            ValueError: If the settings do not fit together; all faults in one message.
            CheckpointError: If the checkpoint cannot be used.
        """
        run = self._open(algorithm, datamodule, federation, ckpt_path)
        # Before the training: that a model of BERTScore is missing must not come out after it.
        tester = self._evaluator(run, self._limit_test)
        started = time.perf_counter() - run.seconds
        clients = run.federation.clients
        self._call(
            "on_fit_start", max_rounds=self.max_rounds, clients=clients, folder=str(run.folder.path)
        )
        try:
            if not run.history:
                self._warm_up(run)
            for number in range(run.next_round, self.max_rounds):
                self._round(run, number)
                run.seconds = time.perf_counter() - started
                if self._checkpointing:
                    self._save(run, number)
                self._call("on_round_end", round=number, metrics=run.history[-1])
            summary = self._summary(run, tester.test(run.federation))
            summary["seconds"] = time.perf_counter() - started
            run.folder.write_summary(summary)
            run.folder.write_adapters(run.federation)
            self._call("on_fit_end", summary=summary)
        finally:
            for callback in self._callbacks:
                if isinstance(callback, RichProgress):
                    callback.close()
        return summary

    def validate(
        self,
        algorithm: Algorithm,
        datamodule: FederatedDataModule,
        federation: FederationSettings,
        ckpt_path: str | None = None,
    ) -> dict[str, float]:
        """Return losses and scores of a checkpoint on the validation splits."""
        run = self._trained(algorithm, datamodule, federation, ckpt_path)
        return self._evaluator(run, self._limit_val).validate(run.federation)

    def test(
        self,
        algorithm: Algorithm,
        datamodule: FederatedDataModule,
        federation: FederationSettings,
        ckpt_path: str | None = None,
    ) -> dict[str, Any]:
        """Return the summary of a checkpoint, with the scores on the test splits."""
        run = self._trained(algorithm, datamodule, federation, ckpt_path)
        results = self._evaluator(run, self._limit_test).test(run.federation)
        return self._summary(run, results)

    def predict(
        self,
        algorithm: Algorithm,
        datamodule: FederatedDataModule,
        federation: FederationSettings,
        ckpt_path: str | None = None,
    ) -> Path:
        """Write what every party of a checkpoint says of the test split of all domains.

        Returns:
            The path of ``predictions.jsonl``: party, id, prediction and target on each line.
        """
        run = self._trained(algorithm, datamodule, federation, ckpt_path)
        evaluator = self._evaluator(run, self._limit_test)
        rows: list[dict[str, str]] = []
        for client, profile in run.federation.parties.profiles.items():
            table = run.data.held_out(client, profile)
            said = evaluator.predictions(run.federation.edge(client), table)
            rows += [{"party": client, **row} for row in said]
        said = evaluator.predictions(run.federation.server, run.data.public("test"))
        rows += [{"party": "server", **row} for row in said]
        return run.folder.write_predictions(rows)

    # One run --------------------------------------------------------------------------------

    def _trained(
        self,
        algorithm: Algorithm,
        data: FederatedDataModule,
        federation: FederationSettings,
        ckpt_path: str | None,
    ) -> _Run:
        if ckpt_path is None:
            raise CheckpointError("ckpt_path: give last, best or a checkpoint file")
        return self._open(algorithm, data, federation, ckpt_path, training=False)

    def _open(
        self,
        algorithm: Algorithm,
        data: FederatedDataModule,
        settings: FederationSettings,
        ckpt_path: str | None,
        *,
        training: bool = True,
    ) -> _Run:
        """Check, launch, build and, with a checkpoint, restore.

        Only training writes log and configuration: an evaluation leaves those of its run alone.
        """
        name = self._name or f"{type(algorithm).__name__}-{type(data).__name__}"
        checkpoint, version = None, None
        if ckpt_path is not None:
            path = find_checkpoint(ckpt_path, run_root=self._root / name).resolve()
            checkpoint = load_checkpoint(path)
            version = path.parents[1].name
            if path.parent != (self._root / name / version / "checkpoints").resolve():
                version = None
        parties = Parties.resolve(settings, algorithm, data)
        self._launch()
        federation = Federation(parties, data, fabric=self._fabric, gradient_clip_val=self._clip)
        federation.prepare(algorithm)
        run = _Run(
            algorithm,
            data,
            federation,
            Evaluator(data, fabric=self._fabric, bertscore=False, limit=self._limit_val),
            Channel(max_norm=self._max_norm),
            RunFolder(self._root, name, version=version, logger=training and self._logger),
            Loaders(
                data.loader(data.public("train"), limit=self._limit_train),
                data.loader(data.pooled(), limit=self._limit_train)
                if algorithm.pools_private
                else None,
            ),
            history=[],
            warmup={},
        )
        if checkpoint is not None:
            self._restore(run, checkpoint)
        if self.config and training:
            run.folder.write_config(self.config)
        return run

    def _launch(self) -> None:
        """Refuse several processes, if possible before Fabric starts them."""
        asked = getattr(self._fabric.strategy, "num_processes", 1) * self._num_nodes
        if asked == 1:
            self._fabric.launch()
            asked = self._fabric.world_size
        if asked > 1:
            raise ConfigurationError(
                f"trainer.devices and num_nodes ask for {asked} processes; the federated loop runs "
                "in one: set trainer.devices to 1"
            )

    def _evaluator(self, run: _Run, limit: int | None) -> Evaluator:
        try:
            return Evaluator(run.data, fabric=self._fabric, bertscore=self._bertscore, limit=limit)
        except (ValueError, ModuleNotFoundError) as error:
            raise ConfigurationError(f"trainer.bertscore: {error}") from error

    def _client_loaders(self, run: _Run, client: str) -> Loaders:
        modalities = run.federation.parties.profiles[client].modalities
        pooled = run.algorithm.pools_private
        private = run.data.pooled(modalities) if pooled else run.data.private(client, "train")
        public = run.data.public("train", modalities=modalities)
        return Loaders(
            run.data.loader(public, limit=self._limit_train),
            run.data.loader(private, limit=self._limit_train),
        )

    def _warm_up(self, run: _Run) -> None:
        # Round -1: its seeds are apart from those of every round.
        ctx = RoundContext(-1, run.federation.parties.seed, run.federation.clients)
        _seed(ctx, "server", "warmup")
        losses = run.algorithm.warmup(run.federation.server, run.server_loaders, ctx)
        run.warmup = {f"server/{k}": v for k, v in losses.items()}
        run.folder.log(run.warmup, step=0)

    def _round(self, run: _Run, number: int) -> None:
        ctx = RoundContext(number, run.federation.parties.seed, run.federation.clients)
        self._call("on_round_start", round=number, participants=ctx.participants)
        metrics: dict[str, float] = {"round": number}
        updates = self._client_updates(run, ctx, metrics)
        aggregate = None
        if run.algorithm.communicates:
            aggregate = run.algorithm.aggregate(updates, ctx)
        else:
            for _ in updates:
                pass
        if aggregate is not None:
            metrics["aggregate/error"] = aggregate.error
            self._call(
                "on_aggregate", round=number, error=aggregate.error, clients=aggregate.clients
            )
        _seed(ctx, "server", "update")
        losses = run.algorithm.server_update(
            run.federation.server, aggregate, run.server_loaders, ctx
        )
        metrics |= {f"server/{k}": v for k, v in losses.items()}
        if self._val_every and (number + 1) % self._val_every == 0:
            metrics |= run.evaluator.validate(run.federation)
        for way in ("uplink", "downlink"):
            metrics[f"communication/{way}_bytes"] = run.channel.ledger.total(way)
        run.history.append(metrics)
        run.folder.log(metrics, step=number + 1)

    def _client_updates(
        self, run: _Run, ctx: RoundContext, metrics: dict[str, float]
    ) -> Iterator[tuple[str, Message]]:
        """Serve one client after another; yield what each sends up, as the server receives it."""
        federation, algorithm, channel = run.federation, run.algorithm, run.channel
        broadcasts: Iterator[tuple[str, Message | None]] = iter(
            algorithm.broadcast(federation.server, run.server_loaders, ctx)
            if algorithm.communicates
            else [(client, None) for client in ctx.participants]
        )
        for client, sent in broadcasts:
            module = federation.module(client)
            received = None
            if sent is not None:
                schema = algorithm.downlink(federation.server, module)
                received = channel.transfer(sent, schema, direction="downlink", client=client)
            edge = federation.edge(client)
            _seed(ctx, client, "update")
            update = algorithm.client_update(edge, self._client_loaders(run, client), received, ctx)
            delivered = None
            if update.message is not None:
                schema = algorithm.uplink(module)
                delivered = channel.transfer(
                    update.message, schema, direction="uplink", client=client
                )
            federation.keep(edge)
            metrics |= {f"clients/{client}/{k}": v for k, v in update.metrics.items()}
            self._call("on_client_end", round=ctx.round, client=client, metrics=update.metrics)
            if delivered is not None:
                yield client, delivered

    # Checkpoint and summary -----------------------------------------------------------------

    def _save(self, run: _Run, number: int) -> None:
        federation = run.federation
        state = {
            "server": federation.server.state_dict(),
            "clients": federation.store.state_dict(),
            "precision": self._fabric.strategy.precision.state_dict(),
            "ledger": run.channel.ledger.state_dict(),
            "history": run.history,
            "warmup": run.warmup,
            "monitor": self._monitor,
            "seconds": run.seconds,
            "config": dict(self.config),
        }
        save_checkpoint(run.folder.checkpoints, state, round=number)

    def _restore(self, run: _Run, state: dict[str, Any]) -> None:
        federation = run.federation
        unlike = sorted(set(state["clients"]) ^ set(federation.clients))
        if unlike:
            raise CheckpointError(f"ckpt_path: the checkpoint has other clients: {unlike}")
        try:
            federation.server.load_state_dict(state["server"])
            federation.store.load_state_dict(state["clients"])
            for client in federation.clients:
                federation.edge(client)
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"ckpt_path: the checkpoint is of other models: {error}"
            ) from error
        self._fabric.strategy.precision.load_state_dict(state["precision"])
        run.channel.ledger.load_state_dict(state["ledger"])
        run.history, run.warmup = state["history"], state["warmup"]
        run.next_round = state["round"] + 1
        run.seconds = state["seconds"]
        run.folder.log(run.warmup, step=0)
        for row in run.history:
            run.folder.log(row, step=int(row["round"]) + 1)

    def _summary(self, run: _Run, results: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "algorithm": type(run.algorithm).__name__,
            "seed": run.federation.parties.seed,
            "rounds": len(run.history),
            **results,
            "aggregation_error": [
                r["aggregate/error"] for r in run.history if "aggregate/error" in r
            ],
            "communication": communication(run.channel.ledger, run.federation),
            "seconds": run.seconds,
        }

    def _call(self, hook: str, **facts: Any) -> None:
        for callback in self._callbacks:
            getattr(callback, hook)(**facts)


def _seed(ctx: RoundContext, party: str, stage: str) -> None:
    """Seed every generator for one party's stage, so that a round depends on nothing before it."""
    seed_everything(ctx.seed_for(party, stage) % 2**32, verbose=False)
