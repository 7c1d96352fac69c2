"""The command ``export``: it needs a run and no configuration."""

from __future__ import annotations

import argparse
from pathlib import Path

from mlecs_lightning.checkpoints.export import export_run

__all__ = ["export"]


def export(args: list[str]) -> Path:
    """Parse the arguments and export a model.

    Args:
        args: What stands behind ``export``.

    Returns:
        The folder.

    Raises:
        ConfigurationError: See `export_run`.
        CheckpointError: See `export_run`.
        SystemExit: If the arguments are wrong, or after ``--help``.
    """
    parser = argparse.ArgumentParser(
        prog="export",
        allow_abbrev=False,
        description="Write one trained model into a folder: its adapter in PEFT's format, encoders "
        "and connector as safetensors, a model card. `load_exported(OUT).ask(...)` asks it.",
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        type=Path,
        help="a run folder, runs/NAME/version_k, whose newest checkpoint is taken; or a checkpoint",
    )
    parser.add_argument("--client", required=True, help="the client's name, or server")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write; a new one")
    parser.add_argument(
        "--include_backbone",
        action=argparse.BooleanOptionalAction,
        help="store the frozen language model, too; by default only a pocket model",
    )
    given = parser.parse_args(args)
    return export_run(
        given.run, given.out, client=given.client, include_backbone=given.include_backbone
    )
