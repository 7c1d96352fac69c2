"""The command line: ``python cli.py fit|validate|test|predict --config FILE``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from rich.console import Console

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
from mlecs_lightning.settings import ConfigurationError, ModelSettings

__all__ = ["FederatedCLI", "main"]


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
        parser.add_subclass_arguments(FederatedDataModule, "data", required=True)
        parser.add_subclass_arguments(Algorithm, "algorithm", required=True)
        parser.add_argument("--server", type=ModelSettings, default=ModelSettings(), help="the LLM")
        parser.add_argument(
            "--edge", type=ModelSettings, default=ModelSettings(), help="what every client has"
        )
        parser.add_argument(
            "--clients",
            type=dict[str, ClientSettings] | DrawnClients,
            required=True,
            help="the clients by name, or count and modality_rate",
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands and their arguments that do not come from the command line."""
        given = {"algorithm", "datamodule", "federation"}
        return dict.fromkeys(("fit", "validate", "test", "predict"), given)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: the trainer reads checkpoints, and they hold no arguments of ours."""

    def instantiate_classes(self) -> None:
        """Build data, algorithm and trainer."""
        try:
            self.config_init = self.parser.instantiate_classes(self.config)
            options = self._get(self.config_init, "trainer")
            self.trainer = FederatedTrainer(**options)  # type: ignore[assignment]
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        self.datamodule = self._get(self.config_init, "data")
        self._dump_config()
        self.trainer.config = self.config_dump  # type: ignore[attr-defined]

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        own = self._subcommand_method_arguments[subcommand]
        chosen = self.config_init[subcommand]
        return {
            **{k: v for k, v in chosen.items() if k in own},
            "algorithm": chosen["algorithm"],
            "datamodule": self.datamodule,
            "federation": FederationSettings(
                chosen["server"], chosen["edge"], chosen["clients"], chosen["seed_everything"]
            ),
        }

    def _run_subcommand(self, subcommand: str) -> None:
        run = getattr(self.trainer, subcommand)
        self.result = run(**self._prepare_subcommand_kwargs(subcommand))


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments in place of ``sys.argv[1:]``.

    Returns:
        0, or 1 after a fault of the input, which is printed without a traceback.
    """
    try:
        cli = FederatedCLI(args)
    except (ConfigurationError, CheckpointError, ChannelError, NonFiniteError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    if cli.subcommand in ("fit", "test"):
        print_summary(cli.result)
    else:
        Console().print(cli.result)
    return 0


def with_merged_clients(args: list[str]) -> list[str]:
    """Merge the ``clients`` of several ``--config`` files by name.

    jsonargparse lets a later file replace the whole dict, so that a file which changes one client
    would make the others vanish without a word. A later file's client keeps the keys that only the
    earlier one gave.

    Args:
        args: The command line.

    Returns:
        The command line with the merged clients behind the last ``--config``, where later arguments
        still change them; as it was, if fewer than two files name clients.
    """
    ends: list[int] = []
    merged: dict[str, Any] = {}
    named = 0
    for i, arg in enumerate(args):
        flag, _, value = arg.partition("=")
        if flag not in ("-c", "--config"):
            continue
        end = i if value else i + 1
        file = Path(value or (args[end] if end < len(args) else ""))
        ends.append(end)
        if not file.is_file():
            continue  # the parser will say so, better than we could
        clients = (yaml.safe_load(file.read_text()) or {}).get("clients")
        if not isinstance(clients, dict):
            continue
        named += 1
        if not all(isinstance(client, dict) for client in (merged | clients).values()):
            merged = clients  # drawn clients have no names to merge by
            continue
        for name, client in clients.items():
            merged[name] = {**merged.get(name, {}), **client}
    if named < 2:
        return args
    return [*args[: ends[-1] + 1], f"--clients={json.dumps(merged)}", *args[ends[-1] + 1 :]]
