"""The command line up to the point where a run would begin."""

from mlecs_lightning.cli import FederatedCLI


class Parsed(FederatedCLI):
    """Reads arguments and builds the objects they name, and runs no subcommand."""

    def _run_subcommand(self, subcommand: str) -> None:
        return
