"""Export of a model of a run into a folder of its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlecs_lightning.checkpoints.checkpoint import checkpoint_of, load_checkpoint
from mlecs_lightning.checkpoints.models import CheckpointModels
from mlecs_lightning.class_paths import import_class
from mlecs_lightning.deploy import ProgramFormat, Provenance, write_export, write_programs
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.rounds.algorithm import Algorithm
from mlecs_lightning.storage.digests import read_checked
from mlecs_lightning.storage.paths import expanded
from mlecs_lightning.storage.text_files import utf8

__all__ = ["export_run"]

log = logging.getLogger(__name__)

_PACKAGE = __name__.partition(".")[0]


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    client: str,
    include_backbone: bool | None = None,
    format: ProgramFormat | None = None,
) -> Path:
    """Export the model of a client, or that of the server.

    Neither data nor configuration are needed: the checkpoint describes the model and the
    preprocessing of its inputs.

    Args:
        run: A run folder, whose newest checkpoint is taken, or a checkpoint.
        out: The folder to write.
        client: The client's name; ``server`` is the LLM.
        include_backbone: See `write_export`.
        format: ``torch`` or ``onnx`` writes programs, see `write_programs`, in the place of the
            adapter.

    Returns:
        The folder.

    Raises:
        ConfigurationError: If there is no such client, the folder is not empty, or the model has
            parts of an algorithm that cannot be exported in this format.
        CheckpointError: If there is no checkpoint, or it has no state of the client.
    """
    path = checkpoint_of(expanded(run, key="export RUN"))
    state = load_checkpoint(path)
    saved = CheckpointModels(path, _algorithm_of(state), state=state)
    module = saved.server() if client == "server" else saved.edge(client)
    folder, provenance = expanded(out, key="export OUT"), _provenance(saved, client)
    if format is not None:
        return write_programs(
            module,
            folder,
            format=format,
            preparations=saved.preparations,
            precision=saved.about["precision"],
            instruction=saved.about["instruction"],
            training=asdict(provenance),
        )
    if module.form():
        raise ConfigurationError(
            f"export: {client!r} has parts of layers of its language model, which an adapter in "
            "PEFT's format cannot describe: export it as programs, with --format torch or onnx"
        )
    return write_export(
        module,
        folder,
        preparations=saved.preparations,
        precision=saved.about["precision"],
        instruction=saved.about["instruction"],
        provenance=provenance,
        include_backbone=include_backbone,
    )


def _algorithm_of(state: Mapping[str, Any]) -> Algorithm | None:
    """Return the method of a run, to rebuild parts that it adds to models.

    ``None`` for a class that is not of this package, since the checkpoint could name any, and for
    a checkpoint that does not say what the method was.
    """
    about = state.get("about", {})
    path, arguments = about.get("algorithm_path", ""), about.get("arguments", {})
    if not path.startswith(f"{_PACKAGE}.") or "algorithm" not in arguments:
        return None
    setting, key = {"class_path": path}, "about.algorithm_path"
    found: type[Algorithm] = import_class(setting, home=_PACKAGE, key=key)
    return found.rebuilt(arguments["algorithm"])


def _provenance(saved: CheckpointModels, client: str) -> Provenance:
    state, about = saved.state, saved.about
    rounds = int(state["round"]) + ("partial" not in state)
    summary = _summary(saved.path, rounds=rounds)
    if client == "server":
        scores = {"all": summary["server"]} if summary else {}
        constant = {"all": summary["constant"]["server"]} if summary else {}
    else:
        scores = {test: summary["clients"][client][test] for test in ("own", "all") if summary}
        constant = {test: summary["constant"][test] for test in ("own", "all") if summary}
    # A run from Python has no configuration, and tells the arguments of its objects.
    configured = state["config"].get("algorithm")
    options = (
        about.get("arguments", {}).get("algorithm", {})
        if configured is None
        else configured.get("init_args", {})
    )
    return Provenance(
        client=client,
        algorithm=about["algorithm"],
        rounds=rounds,
        seed=about["seed"],
        data=about["data"],
        clients=len(saved.clients),
        scores=scores,
        constant=constant,
        options={k: v for k, v in options.items() if v is not None},
    )


def _summary(checkpoint: Path, *, rounds: int) -> Mapping[str, Any]:
    """Return the summary of the run; empty if it belongs to another round."""
    path = checkpoint.resolve().parent.parent / "summary.json"  # a bare name has no parents
    try:
        summary: dict[str, Any] = json.loads(utf8(read_checked(path)))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("the model card tells no scores: %s", error)
        return {}
    return summary if summary.get("rounds") == rounds else {}
