"""LightningCLI over the federated trainer."""

from __future__ import annotations

import inspect
import os
import sys
from typing import Any, Optional

import lightning
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    LRSchedulerCallable,
    OptimizerCallable,
)

from mlecs_lightning.cli.config import PARSER_MODE, ConfigFile, completed
from mlecs_lightning.cli.hints import innermost, known_names
from mlecs_lightning.cli.short_help import short_help
from mlecs_lightning.clients import Federation
from mlecs_lightning.clients.checks import configuration_faults
from mlecs_lightning.clients.settings import client_settings
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.errors import ConfigurationError, FaultList
from mlecs_lightning.federated import FederatedTrainer
from mlecs_lightning.federated.warmup import INHERITED, OWN, ServerWarmup
from mlecs_lightning.network.join import join
from mlecs_lightning.network.serve import serve
from mlecs_lightning.rounds import Algorithm
from mlecs_lightning.settings import ModelSettings, override
from mlecs_lightning.storage.paths import expanded

__all__ = ["FederatedCLI"]


class _Commands(FederatedTrainer):
    """Where Lightning looks up the subcommands."""

    warmup = ServerWarmup.warmup
    serve = serve
    join = join


class FederatedCLI(LightningCLI):
    """LightningCLI over a `FederatedTrainer`: the same commands, configs and overrides.

    Keys: ``seed_everything``, ``trainer``, ``warmup``, ``data``, ``algorithm``, ``server``,
        ``edge``, ``clients``.
    """

    def __init__(self, args: ArgsType = None) -> None:
        """Parse the arguments and run the subcommand.

        Args:
            args: Arguments instead of ``sys.argv``.
        """
        self.result: Any = None
        super().__init__(
            trainer_class=_Commands,  # type: ignore[arg-type]
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={
                "exit_on_error": False,  # `main` prints the error without the usage
                "allow_abbrev": False,  # a key that is mistyped is no prefix of another
                "parser_mode": PARSER_MODE,
            },
            args=args,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Build a parser whose ``--config`` reads a file as `ConfigFile` does."""
        kwargs.setdefault("dump_header", [f"lightning.pytorch=={lightning.__version__}"])
        parser = self.parser_class(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=ConfigFile,
            help="YAML file, or the name of a shipped configuration.",
        )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse a command line, or a namespace as `LightningCLI` does.

        Raises:
            ConfigurationError: If that fails; it lists the known names.
        """
        try:
            if args is None or isinstance(args, list):
                words = sys.argv[1:] if args is None else args
                self._help(words)
                self.config = parser.parse_args(completed(words))
            else:
                super().parse_arguments(parser, args)
        except ArgumentError as error:
            known = known_names(str(error), defaults=self._parser("fit").get_defaults())
            raise ConfigurationError(f"{error}{known}") from error

    def _help(self, words: list[str]) -> None:
        """Print a short help and exit, if one is asked for; ``--help_all`` is jsonargparse's."""
        command = next((word for word in words if word in self.subcommands()), None)
        if command is None or not {"-h", "--help", "--help_all"}.intersection(words):
            return
        parser = self._parser(command)
        if "--help_all" in words:
            parser.print_help()
        else:
            print(short_help(parser, command))
        raise SystemExit(0)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Declare what Lightning declares, in words of our own."""
        super().add_default_arguments_to_parser(parser)
        for action in parser._actions:
            if action.dest == "seed_everything":
                action.help = "Base seed of the training. The data have a seed of their own."

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Declare the keys of a federation."""
        parser.add_class_arguments(FederatedTrainer, "trainer", instantiate=False, sub_configs=True)
        self._add_warmup_arguments(parser)
        parser.add_argument(
            "--data",
            type=FederatedDataModule,
            required=True,
            help="The data set: class and arguments.",
        )
        parser.add_argument(
            "--algorithm", type=Algorithm, required=True, help="The algorithm: class and arguments."
        )
        for party in ("server", "edge"):
            parser.add_class_arguments(
                ModelSettings,
                party,
                instantiate=False,
                sub_configs=True,
                skip={"optimizer", "lr_scheduler"},
            )
            # Declared with Lightning's own types, so that `--edge.optimizer.init_args.lr` and bare
            # class names work and arguments are checked. No default: its arguments would be kept
            # for any other class.
            parser.add_argument(
                f"--{party}.optimizer",
                type=OptimizerCallable,
                default=None,
                help="Optimiser: class and arguments. The default is AdamW with lr 2e-4.",
            )
            parser.add_argument(
                f"--{party}.lr_scheduler",
                type=Optional[LRSchedulerCallable],  # noqa: UP045 - a value
                default=None,
                help="Learning rate scheduler: class and arguments. It steps once per round; by "
                "default the rate is constant.",
            )
        parser.add_argument(
            "--clients",
            type=dict,
            required=True,
            help="The clients: by name, or drawn at random. By name, each has modalities, domains, "
            "and whatever differs from edge (backbone, lora, connector, extractors, optimizer, "
            "lr_scheduler). Drawn ones take count, modality_rate and seed.",
        )

    @staticmethod
    def _add_warmup_arguments(parser: LightningArgumentParser) -> None:
        """Declare the arguments of Lightning's `Trainer`; some default to those of ``trainer``."""
        apart = {*INHERITED, "max_steps"}
        parser.add_class_arguments(
            Trainer, "warmup", instantiate=False, sub_configs=True, skip={*apart, *OWN}
        )
        for name in sorted(apart):
            default = "algorithm.init_args.steps.warmup" if name == "max_steps" else "trainer"
            parser.add_argument(
                f"--warmup.{name}",
                type=Optional[Trainer.__init__.__annotations__[name]],  # noqa: UP045 - a value
                default=None,
                help=f"As in lightning.Trainer; by default that of {default}.",
            )

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        if subcommand != "warmup":
            return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser = self.init_parser(**kwargs)
        self._add_arguments(parser)
        # A group for the method would have the same name as the key.
        self._subcommand_method_arguments[subcommand] = parser.add_method_arguments(
            klass, subcommand, skip=set(self.subcommands()[subcommand]), as_group=False
        )
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return for each subcommand its arguments that are not on the command line."""
        given = {"algorithm", "datamodule", "federation"}
        names = ("fit", "validate", "test", "predict", "warmup", "serve", "join")
        return dict.fromkeys(names, given)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: our checkpoints hold no arguments for Lightning to parse."""

    def _set_seed(self) -> None:
        """Seed everything, unless `instantiate_classes` will refuse the seed."""
        if not self._seed_faults():
            super()._set_seed()

    def _seed_faults(self) -> list[str]:
        seed = int(self._get(self.config, "seed_everything"))
        allowed = range(2**32)  # numpy's
        return [] if seed in allowed else [f"seed_everything must lie in [0, 2**32), got {seed}"]

    def instantiate_classes(self) -> None:
        """Build the settings of the parties, data, algorithm and trainer.

        Raises:
            ConfigurationError: If anything is wrong with them; all faults in one message.
        """
        faults = FaultList(self._seed_faults())
        models = {
            party: model
            for party in ("server", "edge")
            if (model := faults.attempt(self._model_settings, party))
        }
        data = faults.attempt(self._instantiate, "data")
        algorithm = faults.attempt(self._instantiate, "algorithm")
        trainer = faults.attempt(self._build_trainer)
        written = self._get(self.config, "clients")
        clients, wrong = client_settings(written, list(data.modalities) if data else [])
        faults += wrong
        if faults:
            # The sound parts can still be checked, so that all faults come in one message.
            faults += configuration_faults(clients, models, algorithm=algorithm, data=data)
            faults.raise_any(title="the configuration has faults:")
        self.federation = Federation(
            models["server"],
            models["edge"],
            clients,
            int(self._get(self.config, "seed_everything")),
        )
        assert trainer is not None
        self.algorithm, self.datamodule = algorithm, data
        self.trainer = trainer  # type: ignore[assignment]
        self._dump_config()
        trainer.config = self.config_dump

    def _instantiate(self, key: str) -> Any:  # noqa: ANN401 - whatever the YAML names
        """Build the objects under one key.

        Raises:
            ConfigurationError: If a class refuses its arguments.
        """
        parser = self._parser(self.subcommand)
        try:
            part = Namespace({key: self._get(self.config, key)})  # type: ignore[no-untyped-call]
            return parser.instantiate(part)[key]
        except ValueError as error:
            raise ConfigurationError(innermost(error)) from error

    def _build_trainer(self) -> FederatedTrainer | ServerWarmup:
        values = self._instantiate("trainer").as_dict()
        root = expanded(values["default_root_dir"], key="trainer.default_root_dir")
        existing = next(p for p in (root, *root.absolute().parents) if p.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK)):
            raise ConfigurationError(
                f"trainer.default_root_dir: cannot write into {str(existing)!r}"
            )
        if self.subcommand == "warmup":
            return ServerWarmup(self._instantiate("warmup").as_dict(), trainer=values)
        try:
            return _Commands(**values)
        except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
            named = str(error) if str(error).startswith("trainer.") else f"trainer: {error}"
            raise ConfigurationError(named) from error

    def _model_settings(self, party: str) -> ModelSettings:
        values = self._get(self.config, party).as_dict()
        if values["optimizer"] is None:
            del values["optimizer"]
        return override(ModelSettings(), values, key=party)  # type: ignore[no-any-return]

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments = inspect.signature(getattr(_Commands, subcommand)).parameters
        own = arguments.keys() - self.subcommands()[subcommand] - {"self"}
        return {
            "algorithm": self.algorithm,
            "datamodule": self.datamodule,
            "federation": self.federation,
            **{name: self._get(self.config, name) for name in own},
        }

    def _run_subcommand(self, subcommand: str) -> None:
        run = getattr(self.trainer, subcommand)
        self.result = run(**self._prepare_subcommand_kwargs(subcommand))
