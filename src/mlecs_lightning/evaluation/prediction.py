"""Predictions of all parties of a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from lightning.fabric import Fabric
from lightning.pytorch.utilities import rank_zero_warn

from mlecs_lightning.checkpoints.checkpoint import CheckpointError
from mlecs_lightning.checkpoints.models import CheckpointModels
from mlecs_lightning.clients.ranks import Ranks, assign_clients
from mlecs_lightning.data import FederatedDataModule, SampleTable
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.evaluation.parties import Evaluator
from mlecs_lightning.modules import MultimodalLM
from mlecs_lightning.rounds.failures import EvaluationError
from mlecs_lightning.rounds.learner import Learner
from mlecs_lightning.types import ClientProfile

__all__ = ["Predictions", "predictions_of"]

log = logging.getLogger(__name__)


class Predictions(list[dict[str, str]]):
    """Rows of party, id, prediction and, where it is known, target.

    Attributes:
        path: The file that they were written to, ``predictions.jsonl``.
    """

    def __init__(self, rows: Iterable[dict[str, str]], *, path: Path) -> None:
        """Hold rows."""
        super().__init__(rows)
        self.path = path


def predictions_of(
    saved: CheckpointModels,
    data: FederatedDataModule,
    *,
    fabric: Fabric,
    evaluator: Evaluator,
    client_names: tuple[str, ...],
    only: str | None = None,
) -> list[dict[str, str]]:
    """Predict, with the server and every client, all samples that have their modalities.

    A client leaves out samples that belong to another one, as the lines of a `Manifest` can say.

    The models come from the checkpoint alone, and inputs are prepared as in its training, so that
    the data need hold nothing but the samples to predict. The clients are distributed over the
    ranks, and every rank gets all predictions.

    Args:
        saved: The checkpoint.
        data: Has the samples, `FederatedDataModule.asked`.
        fabric: Device and precision; launched.
        evaluator: Has the batch size and the maximum number of batches.
        client_names: The clients of the configuration, which must be the checkpoint's.
        only: Predict with this client alone, all samples whoever they belong to.

    Returns:
        Rows of ``party``, ``id``, ``prediction`` and, where it is known, ``target``; the clients
        one after another, the server last. A client that has not trained yet has no rows, and
        neither has a party whose model raised an exception.

    Raises:
        ConfigurationError: If the data declare other modalities, or have no samples to predict.
        CheckpointError: If the checkpoint has other clients, or a model cannot be built.
        EvaluationError: If the prediction fails for every party.
    """
    if unlike := sorted(set(saved.clients) ^ set(client_names)):
        raise CheckpointError(f"ckpt_path: the checkpoint has other clients: {unlike}")
    if only is not None and only not in saved.trained:
        why = "has not trained yet" if only in saved.clients else "is not in the checkpoint"
        raise ConfigurationError(f"client: {only!r} {why}; allowed: {sorted(saved.trained)}")
    parties = [*saved.trained, "server"] if only is None else [only]
    try:
        data.prepare_as(saved.preparations)
        asked = data.asked()
    except (ValueError, OSError, ImportError) as error:
        raise ConfigurationError(str(error)) from error
    ranks = Ranks(fabric)

    def predict(party: str, module: MultimodalLM, table: SampleTable) -> list[dict[str, str]] | str:
        learner = Learner(party, module, fabric=fabric, gradient_clip_val=None, sync=False)
        try:
            return evaluator.predictions(learner, table)
        except Exception as error:  # the predictions of other parties are kept
            log.debug("%r cannot predict", party, exc_info=True)
            return f"{party}, stage 'predict': {type(error).__name__}: {error}"

    own: dict[str, list[dict[str, str]] | str] = {}
    for client, rank in assign_clients(dict.fromkeys(saved.trained, 1.0), ranks.size).items():
        if rank == ranks.rank and client in parties:
            edge = saved.edge(client)
            others = {*saved.clients} - {client} if only is None else ()
            table = data.asked(others=others)
            seen = data.held_out(client, ClientProfile(edge.modalities), table=table)
            own[client] = predict(client, edge, seen)
    if ranks.rank == 0 and "server" in parties:
        own["server"] = predict("server", saved.server(), asked)
    found = ranks.merge(own)
    failed = [reason for reason in found.values() if isinstance(reason, str)]
    if failed and len(failed) == len(found):
        raise EvaluationError("\n".join(["no party could predict:", *failed]))
    if failed:
        rank_zero_warn(
            "\n".join([f"{len(failed)} of {len(found)} parties have no predictions:", *failed])
        )
    return [
        {"party": party, **{k: v for k, v in row.items() if k != "target" or v}}
        for party in parties
        if not isinstance(rows := found[party], str)
        for row in rows
    ]
