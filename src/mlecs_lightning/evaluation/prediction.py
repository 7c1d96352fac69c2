"""What the parties of a checkpoint say of samples that they are asked about."""

from __future__ import annotations

import logging

from lightning.fabric import Fabric
from lightning.pytorch.utilities import rank_zero_warn

from mlecs_lightning.checkpoints.checkpoint import CheckpointError
from mlecs_lightning.checkpoints.models import SavedModels
from mlecs_lightning.clients.ranks import Ranks, spread
from mlecs_lightning.data import FederatedDataModule, SampleTable
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.evaluation.parties import Evaluator
from mlecs_lightning.modules import MultimodalLM
from mlecs_lightning.rounds.failures import EvaluationError
from mlecs_lightning.rounds.learner import Learner
from mlecs_lightning.types import ClientProfile

__all__ = ["answers"]

log = logging.getLogger(__name__)


def answers(
    saved: SavedModels,
    data: FederatedDataModule,
    *,
    fabric: Fabric,
    evaluator: Evaluator,
    client_names: tuple[str, ...],
) -> list[dict[str, str]]:
    """Ask the server and every client about all samples that their sensors could deliver.

    The models come from the checkpoint alone, and inputs are prepared as in its training, so that
    the data need hold nothing but the samples in question. The clients are spread over the ranks,
    and every rank gets all answers.

    Args:
        saved: The checkpoint.
        data: Delivers the samples, `FederatedDataModule.asked`.
        fabric: Device and precision; launched.
        evaluator: Knows the size of a batch, and how many there may be.
        client_names: Those that the configuration names: they must be the checkpoint's.

    Returns:
        Rows of ``party``, ``id``, ``prediction`` and, where it is known, ``target``; the clients
        one after another, the server last. A client that has not trained yet says nothing, and
        neither does a party whose model raised.

    Raises:
        ConfigurationError: If the data declare other modalities, or hold nothing to answer.
        CheckpointError: If the checkpoint has other clients, or a model cannot be built.
        EvaluationError: If no party could answer.
    """
    if unlike := sorted(set(saved.clients) ^ set(client_names)):
        raise CheckpointError(f"ckpt_path: the checkpoint has other clients: {unlike}")
    try:
        data.prepare_as(saved.preparations)
        asked = data.asked()
    except (ValueError, OSError, ImportError) as error:
        raise ConfigurationError(str(error)) from error
    ranks = Ranks(fabric)

    def said(party: str, module: MultimodalLM, table: SampleTable) -> list[dict[str, str]] | str:
        learner = Learner(party, module, fabric=fabric, gradient_clip_val=None, sync=False)
        try:
            return evaluator.predictions(learner, table)
        except Exception as error:  # what others have said is not lost for it
            log.debug("%r cannot answer", party, exc_info=True)
            return f"{party}, stage 'predict': {type(error).__name__}: {error}"

    own: dict[str, list[dict[str, str]] | str] = {}
    for client, rank in spread(dict.fromkeys(saved.trained, 1.0), ranks.size).items():
        if rank == ranks.rank:
            edge = saved.edge(client)
            seen = data.held_out(client, ClientProfile(edge.modalities), table=asked)
            own[client] = said(client, edge, seen)
    if ranks.rank == 0:
        own["server"] = said("server", saved.server(), asked)
    found = ranks.merge(own)
    failed = [reason for reason in found.values() if isinstance(reason, str)]
    if failed and len(failed) == len(found):
        raise EvaluationError("\n".join(["no party could answer:", *failed]))
    if failed:
        rank_zero_warn("\n".join([f"{len(failed)} of {len(found)} parties said nothing:", *failed]))
    return [
        {"party": party, **{k: v for k, v in row.items() if k != "target" or v}}
        for party in (*saved.trained, "server")
        if not isinstance(rows := found[party], str)
        for row in rows
    ]
