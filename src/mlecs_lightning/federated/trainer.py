"""The federated loop: rounds of broadcast, client updates, aggregation and server update."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import Logger

from mlecs_lightning.callbacks import FederatedCallback, RichProgress
from mlecs_lightning.callbacks.monitor import Monitor, MonitorMode
from mlecs_lightning.checkpoints.checkpoint import CheckpointError, check_config, load_checkpoint
from mlecs_lightning.checkpoints.client_store import DiskStore, MemoryStore, StoreKind
from mlecs_lightning.checkpoints.frozen import check_saved
from mlecs_lightning.checkpoints.models import SavedModels
from mlecs_lightning.checkpoints.warmup import load_warmup
from mlecs_lightning.clients.federation import Federation
from mlecs_lightning.clients.parties import Parties
from mlecs_lightning.clients.ranks import Ranks, make_fabric, processes
from mlecs_lightning.clients.schedules import check_rounds
from mlecs_lightning.clients.settings import FederationSettings
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.evaluation.parties import Evaluator
from mlecs_lightning.evaluation.prediction import answers
from mlecs_lightning.federated.monitoring import DEFAULT_MONITOR, check_monitor
from mlecs_lightning.federated.round_loop import RoundLoop
from mlecs_lightning.federated.run import Run
from mlecs_lightning.federated.summary import summary_of
from mlecs_lightning.federated.versions import RunPlace
from mlecs_lightning.rounds.algorithm import Algorithm, Loaders
from mlecs_lightning.rounds.failures import EvaluationError, FaultTrace
from mlecs_lightning.rounds.participation import LargeUpdate, LoopSettings
from mlecs_lightning.rounds.signals import Interrupted, StopSignals
from mlecs_lightning.storage.files import remove_leftovers
from mlecs_lightning.storage.paths import expanded
from mlecs_lightning.wire.channel import Channel
from mlecs_lightning.wire.codec import Codec

__all__ = ["FederatedTrainer", "Precision"]

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


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
        client_fraction: float = 1.0,
        min_clients: int = 1,
        faults: FaultTrace | None = None,
        max_update_norm: float | None = None,
        max_update_ratio: float | None = 100.0,
        large_update: LargeUpdate = "refuse",
        max_message_norm: float | None = None,
        max_message_bytes: int | None = 2**30,
        codec: Codec | None = None,
        store: StoreKind = "memory",
        monitor: str = DEFAULT_MONITOR,
        monitor_mode: MonitorMode = "min",
        save_top_k: int = 1,
        warmup_ckpt_path: str | None = None,
        allow_other_config: bool = False,
        enable_checkpointing: bool = True,
        enable_progress_bar: bool = True,
        logger: bool | Logger | list[Logger] = True,
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
            precision: ``32-true``, ``bf16-mixed`` or, on a GPU, ``16-mixed``.
            gradient_clip_val: Largest gradient norm of a step; 1.0 in the reference configuration.
            check_val_every_n_rounds: Validate after every n-th round; 0 never.
            limit_train_batches: Most batches of a training pass.
            limit_val_batches: Most batches of a validation.
            limit_test_batches: Most batches of a test or prediction.
            fast_dev_run: One round, one batch of everything, no checkpoint: does it run at all?
            bertscore: Add BERTScore to the test: true for the small model of the extra
                ``bertscore``, or a hub id or directory.
            client_fraction: Share of the clients that take part in a round, drawn anew for each.
            min_clients: With fewer updates than that a round's aggregate is not used.
            faults: Misfortunes to simulate.
            max_update_norm: Largest Euclidean distance of a client's adapter from the one that was
                sent to it.
            max_update_ratio: Largest change of what was sent to a client, as a multiple of what
                was usual in earlier rounds (`Moves`). Honest clients stay far below the default.
            large_update: Whether an update beyond these two is refused, or clipped to them.
            max_message_norm: The channel refuses a message of a larger norm.
            max_message_bytes: The channel refuses a longer message, unread.
            codec: Makes messages shorter on their way, `DWC` for one.
            store: Where the states of clients are kept while others train: in memory, or in files
                in the run folder, which have room for any number of clients.
            monitor: The validation value that ``--ckpt_path best`` and ``save_top_k`` go by.
            monitor_mode: ``min`` for losses, ``max`` for scores, such as clients/val/macro_f1.
            save_top_k: Keep the checkpoints of the k best rounds beside the newest; -1 keeps all.
            warmup_ckpt_path: A checkpoint of ``warmup`` to begin with in place of a warm-up.
            allow_other_config: Go on from a checkpoint of another configuration or frozen model.
            enable_checkpointing: Write a checkpoint after every round.
            enable_progress_bar: Show the progress.
            logger: False for none, true for metrics.csv and TensorBoard, or loggers of Lightning,
                those of Fabric included.
            callbacks: Told what happens.
            default_root_dir: Folder of all runs.
            name: Name of the run; algorithm and data set by default.

        Raises:
            ValueError: If a number is out of range.
        """
        limits = (limit_train_batches, limit_val_batches, limit_test_batches)
        if max_rounds < 1 or min(n or 0 for n in limits) < 0 or save_top_k < -1:
            raise ValueError(
                "trainer.max_rounds must be at least 1, limit_{train,val,test}_batches at least 0 "
                f"and save_top_k at least -1, got {max_rounds}, {limits} and {save_top_k}"
            )
        if not (gradient_clip_val or 0) >= 0:
            raise ValueError(f"trainer.gradient_clip_val must be above 0, got {gradient_clip_val}")
        self.max_rounds = 1 if fast_dev_run else max_rounds
        self._fabric = make_fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=precision,
        )
        self._clip = gradient_clip_val
        self._limit_train, self._limit_val, self._limit_test = (1, 1, 1) if fast_dev_run else limits
        self._checkpointing = enable_checkpointing and not fast_dev_run
        self._loop = LoopSettings(
            val_every=check_val_every_n_rounds,
            limit_train=self._limit_train,
            client_fraction=client_fraction,
            min_clients=min_clients,
            faults=faults,
            max_update_norm=max_update_norm,
            max_update_ratio=max_update_ratio,
            large_update=large_update,
            keeps_messages=self._checkpointing,
        )
        self._bertscore = bertscore
        self._channel = Channel(max_norm=max_message_norm, max_bytes=max_message_bytes, codec=codec)
        self._store: StoreKind = store
        self._monitor, self._top_k = Monitor(monitor, monitor_mode), save_top_k
        self._any_config = allow_other_config
        self._warmup = warmup_ckpt_path and expanded(
            warmup_ckpt_path, key="trainer.warmup_ckpt_path"
        )
        self._logger = [logger] if isinstance(logger, Logger) else logger
        self._callbacks = [*(callbacks or []), *([RichProgress()] if enable_progress_bar else [])]
        self._root, self._name = expanded(default_root_dir, key="trainer.default_root_dir"), name
        self.config: Mapping[str, Any] = {}
        """What `config.yaml` and the checkpoint say of the run; the command line sets it."""

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the process that prints and writes for all."""
        return bool(self._fabric.is_global_zero)

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
            Interrupted: After SIGTERM or SIGINT, when everything is saved.
        """
        run = self._open(algorithm, datamodule, federation, ckpt_path)
        clients = run.federation.clients
        self._call(
            "on_fit_start", max_rounds=self.max_rounds, clients=clients, folder=str(run.folder.path)
        )
        try:
            if run.restored:
                run.tell_changes()
                self._call("on_resume", history=tuple(run.history))
            with StopSignals() as stop:
                self._train(run, RoundLoop(run, self._loop, self._call, stop))
            # Before the test, which may fail.
            run.folder.write_adapters(run.federation)
            summary = summary_of(run, run.tester.test(run.federation, round=self._last(run)))
            run.folder.write_summary(summary)
            self._call("on_fit_end", summary=summary)
            run.folder.close("success")
        except BaseException:
            run.folder.close("failed")
            raise
        finally:
            for callback in self._callbacks:
                if isinstance(callback, RichProgress):
                    callback.close()
        return summary

    def _train(self, run: Run, loop: RoundLoop) -> None:
        """Warm up and run the rounds, with a checkpoint after each and wherever a signal stops."""
        fresh = not run.restored
        if fresh and self._warmup is None:
            loop.warm_up()
        if fresh:
            run.federation.deliver(run.algorithm)
        state = run.state_dict() if self._checkpointing else {}
        if self._checkpointing:
            run.save_beginning(state, keep=self._top_k)
        for number in range(run.next_round, self.max_rounds):
            if any(callback.should_stop for callback in self._callbacks):
                break
            try:
                loop.round(number)
            except Interrupted:
                if self._checkpointing:
                    run.save(state, number, keep=self._top_k, partial=run.partial_state())
                    run.federation.store.drop_messages()
                raise
            except EvaluationError:
                if self._checkpointing:
                    run.save(run.state_dict(), number, keep=self._top_k)
                raise
            if self._checkpointing:
                state = run.state_dict()
                run.save(state, number, keep=self._top_k)
            self._call("on_round_end", round=number, metrics=run.history[-1])
            loop.stop_together()

    def validate(
        self,
        algorithm: Algorithm,
        datamodule: FederatedDataModule,
        federation: FederationSettings,
        ckpt_path: str | None = None,
    ) -> dict[str, float]:
        """Return losses and scores of a checkpoint on the validation splits."""
        run = self._open(algorithm, datamodule, federation, ckpt_path, training=False)
        evaluator = self._evaluator(run.data, self._limit_val, self._bertscore)
        return evaluator.validate(run.federation, round=self._last(run))

    def test(
        self,
        algorithm: Algorithm,
        datamodule: FederatedDataModule,
        federation: FederationSettings,
        ckpt_path: str | None = None,
    ) -> dict[str, Any]:
        """Return the summary of a checkpoint, with the scores on the test splits."""
        run = self._open(algorithm, datamodule, federation, ckpt_path, training=False)
        results = run.tester.test(run.federation, round=self._last(run))
        return summary_of(run, results) | {"seconds": run.before}

    def predict(
        self,
        algorithm: Algorithm,
        datamodule: FederatedDataModule,
        federation: FederationSettings,
        ckpt_path: str | None = None,
    ) -> Path:
        """Write what every party of a checkpoint says of the test split of all domains.

        Lines of a `Manifest` without a target belong to it, and nothing else is needed: the models
        and the scale of their inputs are those of the checkpoint.

        Returns:
            The path of ``predictions.jsonl``: party, id, prediction and, where it is known, target
            on each line.
        """
        place = self._place(algorithm, datamodule)
        path, version = place.find(ckpt_path)
        saved = SavedModels(path, algorithm, any_frozen=self._any_config)
        names = tuple(federation.named_clients(datamodule.modalities))
        self._fabric.launch()
        evaluator = self._evaluator(datamodule, self._limit_test)
        rows = answers(
            saved, datamodule, fabric=self._fabric, evaluator=evaluator, client_names=names
        )
        folder = place.open(Ranks(self._fabric), version=version, logger=False)
        return folder.write_predictions(rows)

    @staticmethod
    def _last(run: Run) -> int:
        """Return the last round that has been trained; 0 if there is none."""
        return int(run.history[-1]["round"]) if run.history else 0

    # One run --------------------------------------------------------------------------------

    def _place(self, *parts: Algorithm | FederatedDataModule) -> RunPlace:
        return RunPlace(self._root, self._name or "-".join(type(part).__name__ for part in parts))

    def _open(
        self,
        algorithm: Algorithm,
        data: FederatedDataModule,
        settings: FederationSettings,
        ckpt_path: str | None,
        *,
        training: bool = True,
    ) -> Run:
        """Check, launch, build and, with a checkpoint, restore.

        Only training writes log and configuration: an evaluation leaves those of its run alone.
        """
        place = self._place(algorithm, data)
        checkpoint, version, path = None, None, Path()
        if ckpt_path is not None or not training:
            path, version = place.find(ckpt_path)
            checkpoint = load_checkpoint(path)
            if training and not self._any_config:
                check_config(checkpoint["config"], self.config)
        parties = Parties.resolve(settings, algorithm, data)
        check_rounds(parties, self._loop, rounds=self.max_rounds if training else 0)
        # Before the launch: ranks that leave a rendezvous at once leave others waiting in it.
        if data.batch_size < processes(self._fabric):
            raise ConfigurationError(
                f"data.init_args.batch_size is {data.batch_size}: the {processes(self._fabric)} "
                "processes of trainer.devices and num_nodes share every batch of the server"
            )
        self._fabric.launch()
        ranks = Ranks(self._fabric)
        # Early: that a model of BERTScore is missing must not come out at the end.
        tester = self._evaluator(data, self._limit_test, self._bertscore)
        federation = Federation(
            parties, data, fabric=self._fabric, gradient_clip_val=self._clip, algorithm=algorithm
        )
        if checkpoint is not None:
            check_saved(checkpoint.get("about"), federation.frozen, path=path, any=self._any_config)
        federation.prepare(algorithm, coded=self._channel.codec is not None)
        if training and checkpoint is None and self._warmup is not None:
            server = federation.server
            load_warmup(Path(self._warmup), server.module, server.optimizer)
        if training and version and not ranks.rank:  # the others wait in `place.open`
            remove_leftovers(place.root / place.name / version)
        if ranks.rank:
            self._callbacks = [c for c in self._callbacks if not isinstance(c, RichProgress)]
        run_folder = place.open(ranks, version=version, logger=training and self._logger)
        if self._store == "disk":
            federation.store = DiskStore(run_folder.checkpoints / "clients")
        elif training and self._checkpointing:
            federation.store = MemoryStore(run_folder.checkpoints)
        shard = (ranks.rank, ranks.size)
        run = Run(
            algorithm,
            data,
            federation,
            self._evaluator(data, self._limit_val),
            tester,
            self._channel,
            run_folder,
            Loaders(
                data.loader(data.public("train"), limit=self._limit_train, shard=shard),
                data.loader(data.pooled(), limit=self._limit_train, shard=shard)
                if algorithm.pools_private
                else None,
            ),
            fabric=self._fabric,
            config=self.config,
            monitor=self._monitor,
            in_place=version is not None,
        )
        try:
            if checkpoint is not None:
                if training and not self._any_config:
                    run.check(checkpoint)
                run.restore(checkpoint, path=path, same_data=not self._any_config)
            if training:
                kept = self._top_k if self._checkpointing else 0
                check_monitor(run, self._loop, max_rounds=self.max_rounds, save_top_k=kept)
        except (CheckpointError, ConfigurationError):
            run_folder.discard()
            raise
        if training:
            run.begin(checkpoint)
        return run

    def _evaluator(
        self, data: FederatedDataModule, limit: int | None, bertscore: bool | str = False
    ) -> Evaluator:
        try:
            return Evaluator(data, fabric=self._fabric, bertscore=bertscore, limit=limit)
        except (OSError, ValueError, ModuleNotFoundError) as error:
            raise ConfigurationError(f"trainer.bertscore: {error}") from error

    def _call(self, hook: str, **facts: Any) -> None:
        for callback in self._callbacks:
            getattr(callback, hook)(**facts)
