"""The command line: ``python cli.py fit|validate|test|predict --config FILE``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser, get_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    OptimizerCallable,
)
from rich.console import Console
from transformers.utils import logging as transformers_logging
from yaml import YAMLError

import mlecs_lightning.algorithms  # noqa: F401 - so that short class names are found
from mlecs_lightning.data import FederatedDataModule
from mlecs_lightning.federated import (
    Algorithm,
    ChannelError,
    CheckpointError,
    ClientSettings,
    DrawnClients,
    FederatedTrainer,
    FederationSettings,
    NonFiniteError,
)
from mlecs_lightning.report import print_summary
from mlecs_lightning.settings import ConfigurationError, ModelSettings, override

__all__ = ["FederatedCLI", "main"]

T = TypeVar("T", ClientSettings, DrawnClients)


class FederatedCLI(LightningCLI):
    """LightningCLI over a `FederatedTrainer`: the same commands, configs and overrides.

    Keys: ``seed_everything``, ``trainer``, ``data``, ``algorithm``, ``server``, ``edge``,
        ``clients``.
    """

    def __init__(self, args: ArgsType = None) -> None:
        """Parse the arguments and run the subcommand.

        Args:
            args: Arguments in place of ``sys.argv``.
        """
        self.result: Any = None
        super().__init__(
            trainer_class=FederatedTrainer,  # type: ignore[arg-type]
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"exit_on_error": False},  # `main` prints the error without the usage
            args=args,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse a command line, or a namespace as `LightningCLI` does."""
        if args is None or isinstance(args, list):
            self.config = parser.parse_args(
                with_merged_clients(sys.argv[1:] if args is None else args)
            )
        else:
            super().parse_arguments(parser, args)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Declare the keys of a federation."""
        parser.add_class_arguments(FederatedTrainer, "trainer", instantiate=False, sub_configs=True)
        parser.add_argument("--data", type=FederatedDataModule, required=True, help="the data set")
        parser.add_argument("--algorithm", type=Algorithm, required=True, help="the method")
        for party in ("server", "edge"):
            parser.add_class_arguments(
                ModelSettings, party, instantiate=False, sub_configs=True, skip={"optimizer"}
            )
            # Declared apart, as Lightning's own type: `--edge.optimizer.init_args.lr` and bare
            # names work, and arguments are checked. No default: its arguments would be passed on
            # to any other class.
            parser.add_argument(
                f"--{party}.optimizer",
                type=OptimizerCallable,
                default=None,
                help="Class and arguments; AdamW with lr 2e-4 if not given.",
            )
        parser.add_argument(
            "--clients",
            type=dict,
            required=True,
            help="by name: modalities, domains, and what differs from edge (backbone, lora, "
            "connector, extractors, optimizer); or drawn: count, modality_rate, seed",
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands and their arguments that do not come from the command line."""
        given = {"algorithm", "datamodule", "federation"}
        return dict.fromkeys(("fit", "validate", "test", "predict"), given)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: the trainer reads checkpoints, and they hold no arguments of ours."""

    def instantiate_classes(self) -> None:
        """Build the settings of the parties, data, algorithm and trainer."""
        self.federation = FederationSettings(
            self._model_settings("server"),
            self._model_settings("edge"),
            client_settings(self._get(self.config, "clients")),
            int(self._get(self.config, "seed_everything")),
        )
        try:
            self.config_init = self.parser.instantiate(self.config)
            trainer = FederatedTrainer(**self._get(self.config_init, "trainer"))
        except ValueError as error:
            raise ConfigurationError(_innermost(error)) from error
        except (RuntimeError, MisconfigurationException) as error:  # from Fabric
            raise ConfigurationError(f"trainer: {error}") from error
        self.trainer = trainer  # type: ignore[assignment]
        self.datamodule = self._get(self.config_init, "data")
        self._dump_config()
        trainer.config = self.config_dump

    def _model_settings(self, party: str) -> ModelSettings:
        values = self._get(self.config, party).as_dict()
        if values["optimizer"] is None:
            del values["optimizer"]
        return override(ModelSettings(), values, key=party)  # type: ignore[no-any-return]

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {
            "algorithm": self._get(self.config_init, "algorithm"),
            "datamodule": self.datamodule,
            "federation": self.federation,
            "ckpt_path": self._get(self.config_init, "ckpt_path"),
        }

    def _run_subcommand(self, subcommand: str) -> None:
        run = getattr(self.trainer, subcommand)
        self.result = run(**self._prepare_subcommand_kwargs(subcommand))


def _innermost(error: BaseException) -> str:
    """Return what a class said of its arguments, without what jsonargparse wraps around it."""
    while error.__cause__ and str(error).startswith("Does not validate"):
        error = error.__cause__
    return str(error)


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments in place of ``sys.argv[1:]``.

    Returns:
        0, or 1 after a fault of the input, which is printed without a traceback.
    """
    if not sys.stderr.isatty():
        # A bar in a log file is a line of rubbish.
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        cli = FederatedCLI(args)
    except (
        ArgumentError,
        ConfigurationError,
        CheckpointError,
        ChannelError,
        NonFiniteError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    match cli.subcommand:
        case "fit" | "test":
            print_summary(cli.result)
        case "validate":
            Console().print(cli.result)
        case _:
            print(cli.result)
    return 0


# The clients --------------------------------------------------------------------------------------


def with_merged_clients(args: list[str]) -> list[str]:
    """Merge all that a command line and its ``--config`` files say of the clients.

    jsonargparse lets a later file replace a whole dict, so that a file which changes one client
    would make the others vanish without a word. Here files and ``--clients.NAME.KEY`` merge by name
    and key, in their order. ``--clients`` replaces them all; named clients replace drawn ones and
    the other way round.

    Args:
        args: The command line.

    Returns:
        The command line with the merged ``--clients`` at its end, where it overrules what stands
        before; as it was, if nothing names any.

    Raises:
        ConfigurationError: If an option is to change a client that is not there.
    """
    clients: dict[str, Any] = {}
    for argument, following in zip(args, [*args[1:], ""], strict=True):
        flag, given, value = argument.partition("=")
        said = _load(value if given else following, file=flag in ("-c", "--config"))
        if flag in ("-c", "--config") and isinstance(said, dict):
            clients = _merge_clients(clients, said.get("clients"))
        elif flag == "--clients" and isinstance(said, dict):
            clients = said
        elif flag.startswith("--clients."):
            name, *keys = flag.removeprefix("--clients.").split(".")
            if keys and name not in clients:
                raise ConfigurationError(
                    f"{flag}: there is no client {name!r} to change, only {list(clients)}; "
                    f"--clients.{name} '{{modalities: [...]}}' adds one"
                )
            for key in reversed([name, *keys]):
                said = {key: said}
            clients = _merge_clients(clients, said)
    return [*args, f"--clients={json.dumps(clients)}"] if clients else args


def _load(text: str, *, file: bool) -> Any:  # noqa: ANN401 - whatever stands in a YAML file
    """Read YAML; ``None`` if that fails: the parser will say so, better than we could."""
    try:
        return get_loader("yaml")(Path(text).read_text() if file else text)
    except (OSError, YAMLError):
        return None


def _merge_clients(old: dict[str, Any], new: object) -> dict[str, Any]:
    if not isinstance(new, dict):
        return old
    return _merge(old, new) if _are_named(old) == _are_named(new) else new


def _are_named(clients: Mapping[str, Any]) -> bool:
    return all(isinstance(client, dict) for client in clients.values())


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    if new.get("class_path", old.get("class_path")) != old.get("class_path"):
        return new  # the arguments of one class mean nothing to another
    return old | {
        key: _merge(old[key], value)
        if isinstance(value, dict) and isinstance(old.get(key), dict)
        else value
        for key, value in new.items()
    }


def client_settings(clients: Mapping[str, Any]) -> dict[str, ClientSettings] | DrawnClients:
    """Check the type of every value, and build the settings of the clients.

    Args:
        clients: What the YAML says: clients by name, or how they are drawn.

    Raises:
        ConfigurationError: If a key is unknown or missing or a value has another type; all faults
            in one message.
    """
    if not _are_named(clients):
        return _build(DrawnClients, clients, key="clients that are not named but drawn")
    faults: list[str] = []
    named: dict[str, ClientSettings] = {}
    for name, values in clients.items():
        try:
            named[name] = _build(ClientSettings, values, key=f"clients.{name}")
        except ConfigurationError as error:
            faults.append(str(error))
    if faults:
        raise ConfigurationError("\n".join(faults))
    return named


def _build(kind: type[T], values: Mapping[str, Any], *, key: str) -> T:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    try:
        return kind(**parser.parse_object(dict(values)).as_dict())
    except ArgumentError as error:
        known = [field.name for field in fields(kind)]
        raise ConfigurationError(f"{key}: {error}; known keys: {known}") from error
