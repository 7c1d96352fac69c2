"""The command line up to the point where a run would begin."""

from typing import Any

from mlecs_lightning.cli import FederatedCLI


class Parsed(FederatedCLI):
    """Reads the arguments of ``fit`` and builds the objects they name, and runs nothing."""

    @staticmethod
    def subcommands() -> dict[str, Any]:
        """Leave out the parsers of other subcommands, which take most of the time."""
        return {"fit": FederatedCLI.subcommands()["fit"]}

    def _run_subcommand(self, subcommand: str) -> None:
        return
