"""The command ``export``, which needs a run but no configuration."""

from __future__ import annotations

import argparse
from pathlib import Path

from mlecs_lightning.checkpoints.export import export_run

__all__ = ["export"]


def export(args: list[str]) -> Path:
    """Parse the arguments and export a model.

    Args:
        args: The arguments after ``export``.

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
        "and connector as safetensors, and a model card. `load_exported(OUT).ask(...)` runs it.",
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        type=Path,
        help="a run folder, runs/NAME/version_k, whose newest checkpoint is used; or a checkpoint",
    )
    parser.add_argument("--client", required=True, help="the client's name, or server")
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="the folder to write; it must not exist"
    )
    parser.add_argument(
        "--include_backbone",
        action=argparse.BooleanOptionalAction,
        help="also store the frozen language model; by default only if it is a pocket model",
    )
    parser.add_argument(
        "--format",
        choices=["torch", "onnx"],
        help="write programs with the whole model inside, for torch.export or ONNX (extra onnx); "
        "`load_device_model(OUT).ask(...)` runs them",
    )
    given = parser.parse_args(args)
    if given.format is not None and given.include_backbone is not None:
        parser.error("--include_backbone: with --format the language model is always included")
    return export_run(
        given.run,
        given.out,
        client=given.client,
        include_backbone=given.include_backbone,
        format=given.format,
    )
