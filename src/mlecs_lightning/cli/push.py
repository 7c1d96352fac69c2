"""The command ``push``, which needs a run but no configuration."""

from __future__ import annotations

import argparse
from pathlib import Path

from mlecs_lightning.checkpoints.push import push_run

__all__ = ["push"]


def push(args: list[str]) -> str:
    """Parse the arguments and upload a model.

    Args:
        args: The arguments after ``push``.

    Returns:
        The address of the commit.

    Raises:
        ConfigurationError: See `push_run`.
        CheckpointError: See `push_run`.
        SystemExit: If the arguments are wrong, or after ``--help``.
    """
    parser = argparse.ArgumentParser(
        prog="push",
        allow_abbrev=False,
        description="Export one trained model, as `export` does, and upload it to the Hugging Face "
        "hub with a model card. `load_exported('user/name').ask(...)` runs it.",
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        type=Path,
        help="a run folder, runs/NAME/version_k, whose newest checkpoint is used; or a checkpoint",
    )
    parser.add_argument("--client", required=True, help="the client's name, or server")
    parser.add_argument(
        "repository", metavar="USER/NAME", help="the model's name on the hub; created if missing"
    )
    parser.add_argument(
        "--private", action="store_true", help="whether a new repository is private; default: no"
    )
    parser.add_argument("--revision", help="the branch, created if missing; default: main")
    parser.add_argument(
        "--include_backbone",
        action=argparse.BooleanOptionalAction,
        help="also upload the frozen language model; by default only if it is a pocket model",
    )
    given = parser.parse_args(args)
    return push_run(
        given.run,
        given.repository,
        client=given.client,
        include_backbone=given.include_backbone,
        private=given.private,
        revision=given.revision,
    )
