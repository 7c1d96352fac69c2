"""What a device writes when the run has ended: its scores, and a checkpoint to export from."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from mlecs_lightning.checkpoints.checkpoint import save_checkpoint
from mlecs_lightning.clients.about import about
from mlecs_lightning.differences import arguments_of
from mlecs_lightning.network.session import DeviceSession
from mlecs_lightning.storage.digests import write_checked

__all__ = ["finish"]

log = logging.getLogger(__name__)


def finish(session: DeviceSession, folder: Path, fabric: Fabric) -> dict[str, Any]:
    """Test the client on the samples of this device, and write checkpoint and summary.

    ``mlecs export FOLDER --client NAME OUT`` reads the checkpoint.

    Args:
        session: The device.
        folder: Its folder.
        fabric: Where it tests.

    Returns:
        The summary; empty if the server counts no round of this client.
    """
    client, device, last = session.client, session.device, session.last
    # Those of an earlier run would look like this one's.
    for earlier in (*(folder / "checkpoints").glob("*.ckpt"), folder / "summary.json"):
        earlier.unlink(missing_ok=True)
    if last is None or not session.store.go_back(last):
        log.warning(
            "no scores and no checkpoint: %s",
            "the server counts no round of this client"
            if last is None
            else f"the state of round {last} is not here, only those of {session.store.rounds}",
        )
        return {}
    edges = device.federation
    edge = edges.edge(client)
    state = {
        "about": about(device.algorithm, device.data, edges, fabric)
        | {"arguments": {"algorithm": arguments_of(device.algorithm)}},
        "config": {},
        "history": [],
        "clients": {client: session.store.get(client)},
    }
    save_checkpoint(folder / "checkpoints", state, round=last)
    tested = session.tested(last)
    summary = {
        "algorithm": type(device.algorithm).__name__,
        "rounds": last + 1,
        "clients": {client: {"modalities": list(edge.module.modalities), **tested.scores}},
        "constant": tested.constant,
        "checks": {client: tested.checks},
    }
    write_checked(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary
