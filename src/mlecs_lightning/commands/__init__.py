"""All commands, in one table, and the completion that is made from it."""

from mlecs_lightning.commands.table import COMMANDS, Command, overview, run, versions

__all__ = ["COMMANDS", "Command", "overview", "run", "versions"]
