"""Trains a federation in rounds: broadcast, client updates, aggregation, server update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import Logger

from mlecs_lightning.callbacks import FederatedCallback, RichProgress
from mlecs_lightning.callbacks.monitor import Monitor, MonitorMode
from mlecs_lightning.checkpoints.client_store import StoreKind
from mlecs_lightning.checkpoints.models import CheckpointModels
from mlecs_lightning.clients.ranks import Ranks, make_fabric
from mlecs_lightning.clients.settings import Federation
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.evaluation.prediction import Predictions, predictions_of
from mlecs_lightning.federated.builder import RunBuilder
from mlecs_lightning.federated.exchange.coverage import check_stopping
from mlecs_lightning.federated.exchange.link import Link
from mlecs_lightning.federated.monitoring import DEFAULT_MONITOR
from mlecs_lightning.federated.run import Run
from mlecs_lightning.federated.settings import TrainerSettings
from mlecs_lightning.federated.summary import summary_of
from mlecs_lightning.federated.trained_run import Results
from mlecs_lightning.federated.training import Training
from mlecs_lightning.rounds import FailureTrace, Participation, Privacy, UpdateLimits
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.rounds.participation import LoopSettings
from mlecs_lightning.rounds.signals import StopSignals
from mlecs_lightning.storage.paths import expanded
from mlecs_lightning.wire import Codec, MessageLimits

__all__ = ["FederatedTrainer", "Precision"]

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

_PARTICIPATION, _UPDATE_LIMITS, _MESSAGE_LIMITS = Participation(), UpdateLimits(), MessageLimits()


class FederatedTrainer(Results):
    """Trains a federation on Fabric; options that Lightning has, too, have its names.

    Example:
        >>> from mlecs_lightning import Digits, FederatedTrainer, MLECS  # doctest: +SKIP
        >>> trainer = FederatedTrainer(max_rounds=3)  # doctest: +SKIP
        >>> trainer.fit(MLECS(), Digits(), federation)["mean"]  # doctest: +SKIP
        >>> trainer.client("kitchen").ask(pixels="digit.png")  # doctest: +SKIP
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
        limit_eval_clients: int | float | None = None,
        limit_test_clients: int | float | None = None,
        fast_dev_run: bool = False,
        rouge: bool = True,
        bertscore: bool | str = False,
        participation: Participation = _PARTICIPATION,
        cohort: int | Literal["auto"] = 1,
        faults: FailureTrace | None = None,
        update_limits: UpdateLimits = _UPDATE_LIMITS,
        message_limits: MessageLimits = _MESSAGE_LIMITS,
        privacy: Privacy | None = None,
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
            max_rounds: Number of rounds.
            accelerator: Hardware, as in Fabric; auto uses a GPU if there is one.
            devices: Number of processes per node, as in Fabric.
            num_nodes: Number of nodes, as in Fabric.
            strategy: How processes train together, such as ``ddp``, as in Fabric.
            precision: ``32-true``, ``bf16-mixed`` or, on a GPU, ``16-mixed``.
            gradient_clip_val: Maximum gradient norm of an optimiser step; 0 or null for no
                clipping. 1.0 in the reference configuration.
            check_val_every_n_rounds: Validate after every n-th round; 0 for never.
            limit_train_batches: Maximum number of batches per training pass.
            limit_val_batches: Maximum number of batches per validation.
            limit_test_batches: Maximum number of batches per test or prediction.
            limit_eval_clients: Number of clients, or fraction in (0, 1], that are scored after a
                round; drawn anew for each round. All by default.
            limit_test_clients: The same for the test at the end.
            fast_dev_run: Run one round with one batch of everything and write no checkpoint, to
                find out whether the configuration works.
            rouge: Score answers with ROUGE-Lsum, which needs the extra ``metrics``.
            bertscore: Add BERTScore to the test: true for the small model of the extra
                ``bertscore``, or a hub id or directory.
            participation: How many clients take part in a round.
            cohort: Maximum number of clients that train together, in one batched pass; auto for up
                to 16, as far as the memory allows. With 1 each client trains alone.
            faults: Simulated client failures; none by default.
            update_limits: How far an update may be from what the client was sent.
            message_limits: How large a message may be.
            privacy: Differential privacy of the clients' updates; none by default.
            codec: Compresses the messages, such as `DWC`.
            store: Where the states of clients are kept while other clients train: in memory, or on
                disk in the run folder, where there is room for any number of clients.
            monitor: The validation value that ``--ckpt_path best`` and ``save_top_k`` compare.
            monitor_mode: ``min`` for losses, ``max`` for scores such as clients/val/macro_f1.
            save_top_k: Keep the checkpoints of the k best rounds beside the newest; -1 keeps all.
            warmup_ckpt_path: A checkpoint of the command ``warmup``, to start from instead of
                warming up.
            allow_other_config: Resume even if the checkpoint has another configuration or another
                frozen model.
            enable_checkpointing: Write a checkpoint after every round.
            enable_progress_bar: Show a progress bar.
            logger: False for none, true for metrics.csv and TensorBoard, or loggers of Lightning
                or Fabric.
            callbacks: Called at the steps of a run, such as `EarlyStopping`.
            default_root_dir: Folder of all runs.
            name: Name of the run; algorithm and data set by default.

        Raises:
            ValueError: If a value is out of range.
        """
        limits = (limit_train_batches, limit_val_batches, limit_test_batches)
        limit_train, limit_val, limit_test = (1, 1, 1) if fast_dev_run else limits
        checkpointing = enable_checkpointing and not fast_dev_run
        self.settings = TrainerSettings(
            max_rounds=1 if fast_dev_run else max_rounds,
            loop=LoopSettings(
                val_every=check_val_every_n_rounds,
                limit_train=limit_train,
                participation=participation,
                faults=faults,
                update_limits=update_limits,
                privacy=privacy,
                keeps_messages=checkpointing,
                cohort=cohort,
            ),
            gradient_clip_val=gradient_clip_val,
            limit_val_batches=limit_val,
            limit_test_batches=limit_test,
            rouge=rouge,
            limit_eval_clients=limit_eval_clients,
            limit_test_clients=limit_test_clients,
            bertscore=bertscore,
            message_limits=message_limits,
            codec=codec,
            store=store,
            monitor=Monitor(monitor, monitor_mode),
            save_top_k=save_top_k,
            warmup_ckpt_path=expanded(warmup_ckpt_path, key="trainer.warmup_ckpt_path")
            if warmup_ckpt_path
            else None,
            allow_other_config=allow_other_config,
            checkpointing=checkpointing,
            logger=[logger] if isinstance(logger, Logger) else logger,
            root=expanded(default_root_dir, key="trainer.default_root_dir"),
            name=name,
        )
        self._fabric = make_fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=precision,
        )
        self._callbacks = [*(callbacks or []), *([RichProgress()] if enable_progress_bar else [])]
        self.config: Mapping[str, Any] = {}
        """What `config.yaml` and the checkpoint say of the run; the command line sets it."""

    @property
    def max_rounds(self) -> int:
        """Number of rounds."""
        return self.settings.max_rounds

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the process that prints and writes for all."""
        return bool(self._fabric.is_global_zero)

    # Entry points ---------------------------------------------------------------------------

    def fit(
        self,
        algorithm: Algorithm,
        datamodule: FederatedDataModule,
        federation: Federation,
        ckpt_path: str | None = None,
    ) -> dict[str, Any]:
        """Train the federation, test it, and write the run folder.

        A resumed run must have the settings of its checkpoint. If both have a configuration, as on
        the command line, it is compared key by key. Otherwise the objects are compared: the
        settings of all parties, the seed, and those arguments of trainer, algorithm and data that
        are kept as attributes of the same name. Arguments that cannot be compared are logged.

        Args:
            algorithm: The method.
            datamodule: The data.
            federation: Server, edges and clients.
            ckpt_path: ``last``, ``best`` or a checkpoint file to resume from.

        Returns:
            The summary, as in ``summary.json``. Later `summary`, `metrics`, `server` and `client`
            tell of this run.

        Raises:
            ValueError: If the settings do not fit together; all faults in one message.
            CheckpointError: If the checkpoint cannot be used.
            Interrupted: After SIGTERM or SIGINT, when everything is saved.
        """
        return self.train(self.open(algorithm, datamodule, federation, ckpt_path))

    def train(
        self, run: Run, link: Callable[[Run, StopSignals], Link] | None = None
    ) -> dict[str, Any]:
        """Train a run that `open` has built, test it, and write its folder.

        Args:
            run: The run.
            link: Makes the link to the devices; by default they are simulated in this process.

        Returns:
            The summary.
        """
        callbacks = self._callbacks
        if not self.is_global_zero:
            callbacks = [c for c in callbacks if not isinstance(c, RichProgress)]
        summary = Training(run, self.settings, callbacks).fit(link)
        self._keep(run, summary, saved=self.settings.checkpointing)
        return summary

    def validate(
        self,
        algorithm: Algorithm,
        datamodule: FederatedDataModule,
        federation: Federation,
        ckpt_path: str | None = None,
    ) -> dict[str, float]:
        """Return losses and scores of a checkpoint on the validation splits.

        Args:
            algorithm: The method.
            datamodule: The data.
            federation: Server, edges and clients.
            ckpt_path: ``last``, ``best`` or a checkpoint file.
        """
        run = self.open(algorithm, datamodule, federation, ckpt_path, training=False)
        builder = self._builder(algorithm, datamodule)
        evaluator = builder.evaluator(self.settings.limit_val_batches, bertscore=True)
        evaluator.cohorts = run.cohorts
        return evaluator.validate(run.federation, round=run.last_round)

    def test(
        self,
        algorithm: Algorithm,
        datamodule: FederatedDataModule,
        federation: Federation,
        ckpt_path: str | None = None,
    ) -> dict[str, Any]:
        """Return the summary of a checkpoint, with the scores on the test splits.

        Args:
            algorithm: The method.
            datamodule: The data.
            federation: Server, edges and clients.
            ckpt_path: ``last``, ``best`` or a checkpoint file.
        """
        run = self.open(algorithm, datamodule, federation, ckpt_path, training=False)
        return summary_of(run, run.test()) | {"seconds": run.before}

    def predict(
        self,
        algorithm: Algorithm,
        datamodule: FederatedDataModule,
        federation: Federation,
        ckpt_path: str | None = None,
        client: str | None = None,
    ) -> Predictions:
        """Predict the test split of all domains with every party of a checkpoint.

        Lines of a `Manifest` without a target are predicted, too, and nothing else is needed: the
        models and the scale of their inputs are those of the checkpoint.

        Args:
            algorithm: The method.
            datamodule: The data.
            federation: Names the clients, which must be those of the checkpoint.
            ckpt_path: ``last``, ``best`` or a checkpoint file.
            client: The client that answers all samples, and nobody else. By default all parties
                answer; a line of a `Manifest` that names its client is answered by this client and
                the server.

        Returns:
            Rows of party, id, prediction and, where it is known, target. Their ``path`` is that of
            ``predictions.jsonl``, which has them line by line.
        """
        builder = self._builder(algorithm, datamodule)
        path, version = builder.versions.find(ckpt_path)
        saved = CheckpointModels(path, algorithm, any_frozen=self.settings.allow_other_config)
        names = tuple(federation.named_clients(datamodule.modalities))
        self._fabric.launch()
        evaluator = builder.evaluator(self.settings.limit_test_batches, bertscore=False)
        rows = predictions_of(
            saved,
            datamodule,
            fabric=self._fabric,
            evaluator=evaluator,
            client_names=names,
            only=client,
        )
        folder = builder.versions.open(Ranks(self._fabric), version=version, logger=False)
        return Predictions(rows, path=folder.write_predictions(rows))

    # One run --------------------------------------------------------------------------------

    def _builder(
        self,
        algorithm: Algorithm,
        datamodule: FederatedDataModule,
        *,
        training: bool = False,
        remote: bool = False,
    ) -> RunBuilder:
        return RunBuilder(
            self.settings, self._fabric, self.config, algorithm, datamodule, training, remote
        )

    def open(
        self,
        algorithm: Algorithm,
        datamodule: FederatedDataModule,
        federation: Federation,
        ckpt_path: str | None,
        *,
        training: bool = True,
        remote: bool = False,
    ) -> Run:
        """Check, launch and build a run; with a checkpoint, restore it.

        Args:
            algorithm: The method.
            datamodule: The data.
            federation: Server, edges and clients.
            ckpt_path: ``last``, ``best`` or a checkpoint file.
            training: Whether the run will train.
            remote: Whether the clients train elsewhere.
        """
        if training:
            check_stopping(self.settings.loop, self._callbacks)
        builder = self._builder(algorithm, datamodule, training=training, remote=remote)
        return builder.build(federation, ckpt_path)
