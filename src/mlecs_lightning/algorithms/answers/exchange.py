"""Answers to the public samples without a target: asking models, and learning from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from mlecs_lightning.aggregation import GroupedAdapters
from mlecs_lightning.algorithms.answers.consensus import Consensus, consensus
from mlecs_lightning.algorithms.answers.labels import Labels
from mlecs_lightning.data import SampleTable
from mlecs_lightning.data.sampling import sequential_loader
from mlecs_lightning.errors import FaultList
from mlecs_lightning.modules import MultimodalLM
from mlecs_lightning.rounds import EdgeLearner, Loaders, ServerLearner
from mlecs_lightning.types import Batch

__all__ = ["AnsweredAdapters", "Answers"]

_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class AnsweredAdapters(GroupedAdapters):
    """Aggregated adapters, and what the clients agree on.

    Attributes:
        consensus: The clients' consensus on the samples of `Answers.asked`; ``None`` if nobody
            answered.
    """

    consensus: Labels | None


@dataclass(frozen=True)
class Answers:
    """How clients and server exchange pseudo-labels of the public samples without a target.

    After its training, a client answers all of these samples and sends texts and probabilities. The
    server forms a consensus, trains on it, and sends its own answers down in the next round, where
    a client's public pass uses them as targets. The server's answers are a function of its weights,
    so nothing is kept between rounds and a resumed run stays exact. In round 0 nothing is sent
    down, because no client has answered yet.

    All models share the space of texts, whatever their encoders, ranks and vocabularies, so answers
    also pass between groups of backbones.

    Source: our choice, after federated distillation (FedMD, arXiv 1910.03581). The ML-ECS paper has
    no such exchange, so it is off by default.

    Attributes:
        consensus: How the clients' answers are combined; see `similarity_consensus` and
            `reliability_consensus`.
        server_threshold: Minimum confidence of the consensus for the server to train on it, in
            0..1.
        client_threshold: Minimum probability, under the server's model, of an answer that clients
            train on, in 0..1.
    """

    consensus: Consensus = "similarity"
    server_threshold: float = 0.5
    client_threshold: float = 0.5

    def __post_init__(self) -> None:
        """Check ranges."""
        FaultList(
            f"algorithm.init_args.answers.{name} must lie in [0, 1], got {value}"
            for name in ("server_threshold", "client_threshold")
            if not 0 <= (value := getattr(self, name)) <= 1
        ).raise_any()

    @staticmethod
    def asked(table: SampleTable) -> SampleTable:
        """Return the samples without a target."""
        return table.select((~table.labelled()).nonzero().flatten().tolist())

    def answer(self, learner: EdgeLearner | ServerLearner, table: SampleTable) -> Labels:
        """Return a model's answers to samples; none to a sample that it has no input of.

        Args:
            learner: The party that answers.
            table: N samples.
        """
        if not len(table):
            return Labels.none()
        batches = sequential_loader(table, _BATCH)
        texts, confidence = list[str](), list[Tensor]()
        for spoken, probability in learner.map(batches, _answered):
            texts += spoken
            confidence.append(probability.cpu())
        sensed = table.present.any(dim=1)
        answered = tuple(t if there else "" for t, there in zip(texts, sensed, strict=True))
        return Labels(answered, torch.cat(confidence)).above(0.0)

    def agreed(self, votes: Iterable[tuple[Labels, float]]) -> Labels | None:
        """Return the consensus of weighted votes; ``None`` if there are none."""
        answers, weights = [], []
        for vote, weight in votes:
            answers.append(vote)
            weights.append(weight)
        if not answers or not answers[0].texts:
            return None
        return consensus(answers, weights, method=self.consensus)

    def taught(self, loaders: Loaders, labels: Labels | None, *, threshold: float) -> Loaders:
        """Return loaders in which public samples without a target have answers as targets.

        Args:
            loaders: The loaders.
            labels: Answers to the samples of `asked`, or nothing.
            threshold: Minimum confidence of an answer that is used.
        """
        if labels is None or not labels.texts:
            return loaders
        table = loaders.public.table
        ids = self.asked(table).ids
        known = table.with_targets(labels.above(threshold).by_id(ids))
        return loaders._replace(public=loaders.public.over(known))


def _answered(module: MultimodalLM, batch: Batch) -> tuple[list[str], Tensor]:
    return module.answer(batch)
