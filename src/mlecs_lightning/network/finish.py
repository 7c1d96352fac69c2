"""What a device writes when the run has ended: its scores, and a checkpoint to export from."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from mlecs_lightning.checkpoints.checkpoint import save_checkpoint
from mlecs_lightning.clients.about import about
from mlecs_lightning.evaluation.parties import Evaluator
from mlecs_lightning.extras import MissingExtraError, require
from mlecs_lightning.metrics import ROUGE
from mlecs_lightning.network.session import DeviceSession
from mlecs_lightning.storage.digests import write_checked

__all__ = ["finish"]

log = logging.getLogger(__name__)


def finish(
    session: DeviceSession, folder: Path, fabric: Fabric, *, limit: int | None, rouge: bool
) -> dict[str, Any]:
    """Test the client on the samples of this device, and write checkpoint and summary.

    Nothing of it leaves the device. ``mlecs export FOLDER --client NAME OUT`` reads the checkpoint.

    Args:
        session: The device.
        folder: Its folder.
        fabric: Where it tests.
        limit: Maximum number of batches per evaluation.
        rouge: Whether to score answers with ROUGE-Lsum; without its package there is only a note,
            since no other party's scores are compared with these.

    Returns:
        The summary; empty if the client has not trained.
    """
    client, device = session.client, session.device
    rounds, edges = session.store.rounds, device.federation
    if not rounds or rounds[-1] < 0:
        return {}
    session.store.go_back(rounds[-1])
    edge = edges.edge(client)
    state = {
        "about": about(device.algorithm, device.data, edges, fabric),
        "config": {},
        "history": [],
        "clients": {client: session.store.get(client)},
    }
    save_checkpoint(folder / "checkpoints", state, round=rounds[-1])
    if rouge:
        try:
            require(ROUGE)
        except MissingExtraError as error:
            log.warning("the summary is without ROUGE-Lsum: %s", error)
            rouge = False
    evaluator = Evaluator(device.data, fabric=fabric, bertscore=False, limit=limit, rouge=rouge)
    tested = evaluator.tested(edges, edge)
    summary = {
        "algorithm": type(device.algorithm).__name__,
        "rounds": rounds[-1] + 1,
        "clients": {client: {"modalities": list(edge.module.modalities), **tested.scores}},
        "constant": tested.constant,
        "checks": {client: tested.checks},
    }
    write_checked(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary
