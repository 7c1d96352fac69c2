"""The command line: ``python cli.py fit|validate|test|predict|warmup|data check --config FILE``.

And ``python cli.py export RUN --client NAME OUT`` and ``push RUN --client NAME USER/MODEL``.
"""

from __future__ import annotations

import sys

from transformers.utils import logging as transformers_logging

from mlecs_lightning.checkpoints import CheckpointError
from mlecs_lightning.cli.export import export
from mlecs_lightning.cli.parser import FederatedCLI
from mlecs_lightning.cli.push import push
from mlecs_lightning.clients.parties import Parties
from mlecs_lightning.clients.texts import text_suspicions
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.federated import ClientsFailedError
from mlecs_lightning.metrics import BertScore
from mlecs_lightning.report import check_data, print_summary, print_validation
from mlecs_lightning.rounds import EvaluationError, Interrupted, NonFiniteError
from mlecs_lightning.storage.files import DamagedFileError, FullDiskError
from mlecs_lightning.wire import ChannelError

__all__ = ["main"]


class _DataCheck(FederatedCLI):
    """``data check``: takes the arguments of ``fit`` and checks its data instead of training."""

    def _run_subcommand(self, subcommand: str) -> None:
        assert self.algorithm is not None
        parties = Parties.resolve(self.federation, self.algorithm, self.datamodule)
        found = text_suspicions(parties, self.datamodule, algorithm=self.algorithm)
        try:
            bertscore = BertScore.of(self._get(self.config, "trainer.bertscore"))
            if bertscore is not None:
                bertscore.unknown_share(())  # loads the model, so that a missing one is named
        except (OSError, ValueError, ModuleNotFoundError) as error:
            raise ConfigurationError(f"trainer.bertscore: {error}") from error
        self.result = check_data(
            self.datamodule, parties.profiles, bertscore=bertscore, texts=found
        )


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments instead of ``sys.argv[1:]``.

    Returns:
        0 for success; 1 after an error of the input, which is printed without a traceback; 128 +
        the number of the signal that stopped the run (130 for SIGINT, 143 for SIGTERM).
    """
    if not sys.stderr.isatty():
        # In a log file a progress bar is unreadable.
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    words = sys.argv[1:] if args is None else args
    checks = words[:2] == ["data", "check"]
    try:
        if words[:1] == ["export"]:
            print(export(words[1:]))
            return 0
        if words[:1] == ["push"]:
            print(push(words[1:]))
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
        remedy = "nothing was saved: the same command begins anew"
        if words[:1] == ["join"]:
            remedy = "the same command goes on"
        elif stopped.saved:
            remedy = "--ckpt_path last resumes the run"
        print(f"{stopped}; {remedy}", file=sys.stderr)
        return 128 + stopped.signum
    if checks or not cli.trainer.is_global_zero:
        return 0
    match cli.subcommand:
        case "fit" | "test" | "serve":
            print_summary(cli.result)
        case "validate":
            print_validation(cli.result)
        case "predict":
            print(cli.result.path)
        case _:
            print(cli.result)
    return 0
