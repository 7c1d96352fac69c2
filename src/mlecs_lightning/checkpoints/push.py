"""Publishes a model of a run on the Hugging Face hub."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from mlecs_lightning.checkpoints.export import export_run
from mlecs_lightning.deploy.card import model_card
from mlecs_lightning.deploy.folder import CONFIG
from mlecs_lightning.deploy.hub import check_repository, upload

__all__ = ["push_run"]


def push_run(
    run: str | Path,
    repository: str,
    *,
    client: str,
    include_backbone: bool | None = None,
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Export a model of a run and upload it; ``load_exported(repository)`` loads it anywhere.

    Args:
        run: A run folder, whose newest checkpoint is taken, or a checkpoint.
        repository: ``user/name`` on the hub; created if missing.
        client: The client's name; ``server`` is the LLM.
        include_backbone: See `write_export`.
        private: Whether a new repository is private.
        revision: The branch, created if missing; ``main`` by default.

    Returns:
        The address of the commit.

    Raises:
        ConfigurationError: See `export_run` and `upload`.
        CheckpointError: See `export_run`.
    """
    check_repository(repository)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "model"
        folder = export_run(run, out, client=client, include_backbone=include_backbone)
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        card = model_card(config, place=repository)
        (folder / "README.md").write_text(card, encoding="utf-8")
        return upload(folder, repository, private=private, revision=revision)
