"""The command line: ``python cli.py fit|validate|test|predict|warmup|data check --config FILE``.

And ``python cli.py export RUN --client NAME OUT``.
"""

from __future__ import annotations

import os
import re
import sys
from difflib import get_close_matches
from inspect import isabstract, isclass
from typing import Any, Optional

import lightning
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    LRSchedulerCallable,
    OptimizerCallable,
)
from rich.console import Console
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers.utils import logging as transformers_logging

import mlecs_lightning.algorithms  # noqa: F401 - so that short class names are found
from mlecs_lightning.class_paths import import_class
from mlecs_lightning.cli_config import PARSER_MODE, ConfigFile, completed
from mlecs_lightning.cli_export import export
from mlecs_lightning.data import FederatedDataModule, Schedule
from mlecs_lightning.errors import ConfigurationError, FaultList
from mlecs_lightning.federated import (
    Algorithm,
    ChannelError,
    CheckpointError,
    ClientsFailedError,
    Codec,
    EvaluationError,
    FederatedTrainer,
    FederationSettings,
    Interrupted,
    NonFiniteError,
)
from mlecs_lightning.federated.clients import client_settings
from mlecs_lightning.federated.parties import Parties
from mlecs_lightning.federated.party_faults import party_faults
from mlecs_lightning.federated.texts import text_suspicions
from mlecs_lightning.federated.warmup import INHERITED, OWN, ServerWarmup
from mlecs_lightning.files import DamagedFileError, FullDiskError
from mlecs_lightning.metrics import BertScore
from mlecs_lightning.paths import expanded
from mlecs_lightning.report import check_data, print_summary
from mlecs_lightning.settings import ModelSettings, override

__all__ = ["FederatedCLI", "main"]

_BASES: dict[str, type] = {
    "data": FederatedDataModule,
    "algorithm": Algorithm,
    "schedule": Schedule,
    "codec": Codec,
    "optimizer": Optimizer,
    "lr_scheduler": LRScheduler,
}
_CLASS_PATH = r"class_path[= ]'([\w.]+)'"


class _Commands(FederatedTrainer):
    """Where Lightning looks up the subcommands."""

    warmup = ServerWarmup.warmup


class FederatedCLI(LightningCLI):
    """LightningCLI over a `FederatedTrainer`: the same commands, configs and overrides.

    Keys: ``seed_everything``, ``trainer``, ``warmup``, ``data``, ``algorithm``, ``server``,
        ``edge``, ``clients``.
    """

    def __init__(self, args: ArgsType = None) -> None:
        """Parse the arguments and run the subcommand.

        Args:
            args: Arguments in place of ``sys.argv``.
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
        parser.add_argument("-c", "--config", action=ConfigFile, help="a configuration in YAML")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse a command line, or a namespace as `LightningCLI` does.

        Raises:
            ConfigurationError: If that fails; it says which names are known.
        """
        try:
            if args is None or isinstance(args, list):
                self.config = parser.parse_args(completed(sys.argv[1:] if args is None else args))
            else:
                super().parse_arguments(parser, args)
        except ArgumentError as error:
            known = known_names(str(error), defaults=self._parser("fit").get_defaults())
            raise ConfigurationError(f"{error}{known}") from error

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Declare the keys of a federation."""
        parser.add_class_arguments(FederatedTrainer, "trainer", instantiate=False, sub_configs=True)
        self._add_warmup_arguments(parser)
        parser.add_argument("--data", type=FederatedDataModule, required=True, help="the data set")
        parser.add_argument("--algorithm", type=Algorithm, required=True, help="the method")
        for party in ("server", "edge"):
            parser.add_class_arguments(
                ModelSettings,
                party,
                instantiate=False,
                sub_configs=True,
                skip={"optimizer", "lr_scheduler"},
            )
            # Declared apart, as Lightning's own types: `--edge.optimizer.init_args.lr` and bare
            # names work, and arguments are checked. No default: its arguments would be passed on
            # to any other class.
            parser.add_argument(
                f"--{party}.optimizer",
                type=OptimizerCallable,
                default=None,
                help="Class and arguments; AdamW with lr 2e-4 if not given.",
            )
            parser.add_argument(
                f"--{party}.lr_scheduler",
                type=Optional[LRSchedulerCallable],  # noqa: UP045 - a value
                default=None,
                help="Class and arguments; goes by rounds. The rate stays as it is if not given.",
            )
        parser.add_argument(
            "--clients",
            type=dict,
            required=True,
            help="by name: modalities, domains, and what differs from edge (backbone, lora, "
            "connector, extractors, optimizer, lr_scheduler); or drawn: count, modality_rate, seed",
        )

    @staticmethod
    def _add_warmup_arguments(parser: LightningArgumentParser) -> None:
        """Declare the arguments of Lightning's `Trainer`; some are those of ``trainer``."""
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
                help=f"As in lightning.Trainer; that of {default} if not given.",
            )

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        if subcommand != "warmup":
            return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser = self.init_parser(**kwargs)
        self._add_arguments(parser)
        # No group for the method: it would have the name of the key.
        self._subcommand_method_arguments[subcommand] = parser.add_method_arguments(
            klass, subcommand, skip=set(self.subcommands()[subcommand]), as_group=False
        )
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands and their arguments that do not come from the command line."""
        given = {"algorithm", "datamodule", "federation"}
        return dict.fromkeys(("fit", "validate", "test", "predict", "warmup"), given)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: the trainer reads checkpoints, and they hold no arguments of ours."""

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
            # What is sound can still be checked, and a user wants to hear of it now.
            faults += party_faults(clients, models, algorithm=algorithm, data=data)
            faults.raise_any(title="the configuration has faults:")
        self.federation = FederationSettings(
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
            raise ConfigurationError(_innermost(error)) from error

    def _build_trainer(self) -> FederatedTrainer | ServerWarmup:
        values = self._instantiate("trainer").as_dict()
        root = expanded(values["default_root_dir"], key="trainer.default_root_dir")
        place = next(p for p in (root, *root.absolute().parents) if p.exists())
        if not (place.is_dir() and os.access(place, os.W_OK)):
            raise ConfigurationError(f"trainer.default_root_dir: cannot write into {str(place)!r}")
        if self.subcommand == "warmup":
            return ServerWarmup(self._instantiate("warmup").as_dict(), trainer=values)
        try:
            return FederatedTrainer(**values)
        except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
            named = str(error) if str(error).startswith("trainer.") else f"trainer: {error}"
            raise ConfigurationError(named) from error

    def _model_settings(self, party: str) -> ModelSettings:
        values = self._get(self.config, party).as_dict()
        if values["optimizer"] is None:
            del values["optimizer"]
        return override(ModelSettings(), values, key=party)  # type: ignore[no-any-return]

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {
            "algorithm": self.algorithm,
            "datamodule": self.datamodule,
            "federation": self.federation,
            "ckpt_path": self._get(self.config, "ckpt_path"),
        }

    def _run_subcommand(self, subcommand: str) -> None:
        run = getattr(self.trainer, subcommand)
        self.result = run(**self._prepare_subcommand_kwargs(subcommand))


class _DataCheck(FederatedCLI):
    """``data check``: takes the arguments of ``fit``, and looks at its data in place of a run."""

    def _run_subcommand(self, subcommand: str) -> None:
        assert self.algorithm is not None
        parties = Parties.resolve(self.federation, self.algorithm, self.datamodule)
        found = text_suspicions(parties, self.datamodule, algorithm=self.algorithm)
        try:
            bertscore = BertScore.of(self._get(self.config, "trainer.bertscore"))
            if bertscore is not None:
                bertscore.unknown_share(())  # here, so that a missing model is named as one
        except (OSError, ValueError, ModuleNotFoundError) as error:
            raise ConfigurationError(f"trainer.bertscore: {error}") from error
        self.result = check_data(
            self.datamodule, parties.profiles, bertscore=bertscore, texts=found
        )


def _innermost(error: BaseException) -> str:
    """Return what a class said of its arguments, without what jsonargparse wraps around it."""
    while error.__cause__ and str(error).startswith("Does not validate"):
        error = error.__cause__
    return str(error)


def known_names(message: str, *, defaults: Namespace) -> str:
    """Return what a user could have written in place of a name that jsonargparse does not know.

    Args:
        message: What jsonargparse says.
        defaults: All keys.

    Returns:
        The names, to be put behind the message; empty if it is of something else.
    """
    names: list[str] = []
    hint = ""
    if key := re.search(r"(?:accept option '|unrecognized arguments: --)([\w.]+)", message):
        siblings = defaults.get(key[1].rpartition(".")[0], defaults)
        names = list(vars(siblings)) if isinstance(siblings, Namespace) else []
        every = list(defaults.keys(branches=True))
        longer = [known for known in every if known.startswith(key[1])]
        near = longer or get_close_matches(key[1], every, n=1)
        hint = f"; did you mean --{near[0]}?" if near else ""
    elif re.search(
        r"Expected a <class 'str'>(?s:.*)(class '(bool|int|float)'>|value: [TFN\d])", message
    ):
        hint = "; a word that YAML takes for something else stands in quotes"
    elif "is not accepted" in message and (paths := re.findall(_CLASS_PATH, message)):
        refused = import_class({"class_path": paths[-1]}, home="builtins", key="class_path")
        names = ArgumentParser().add_class_arguments(refused) if isclass(refused) else []
    elif re.search("import path|No module|no attribute|is abstract|subclass of", message):
        *_, kind = re.findall(r'Parser key "(?:\w+\.)*(\w+)"', message) or [""]
        names = sorted(_subclass_names(_BASES[kind])) if kind in _BASES else []
    return hint + (f"\n  known: {names}" if names else "")


def _subclass_names(base: type) -> set[str]:
    """Return bare names that jsonargparse takes for a class path; others offer theirs in full."""
    names: set[str] = set()
    kinds: list[type] = base.__subclasses__()
    for kind in kinds:
        names |= _subclass_names(kind)
        ours = kind.__module__.startswith(("mlecs_lightning", "torch.optim"))
        if ours and not isabstract(kind):
            names.add(kind.__name__)
    return names


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments in place of ``sys.argv[1:]``.

    Returns:
        0; 1 after a fault of the input, which is printed without a traceback; 128 + the number of
        the signal that stopped the run (130 for SIGINT, 143 for SIGTERM).
    """
    if not sys.stderr.isatty():
        # A bar in a log file is a line of rubbish.
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    words = sys.argv[1:] if args is None else args
    checks = words[:2] == ["data", "check"]
    try:
        if words[:1] == ["export"]:
            print(export(words[1:]))
            return 0
        cli = _DataCheck(["fit", *words[2:]]) if checks else FederatedCLI(args)
    except (
        ConfigurationError,
        CheckpointError,
        ChannelError,
        ClientsFailedError,
        DamagedFileError,
        EvaluationError,
        FullDiskError,
        NonFiniteError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as stopped:
        print(f"{stopped}; --ckpt_path last goes on", file=sys.stderr)
        return 128 + stopped.signum
    if checks or not cli.trainer.is_global_zero:
        return 0
    match cli.subcommand:
        case "fit" | "test":
            print_summary(cli.result)
        case "validate":
            Console().print(cli.result)
        case _:
            print(cli.result)
    return 0
