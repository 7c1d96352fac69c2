"""Answers to the public samples without a target: asking models, and learning from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlecs_lightning.aggregation import Aggregate, GroupedAdapters
from mlecs_lightning.algorithms.answers.calibration import calibrated
from mlecs_lightning.algorithms.answers.consensus import (
    Consensus,
    similarity_consensus,
    voted_consensus,
)
from mlecs_lightning.algorithms.answers.labels import Labels, distinct
from mlecs_lightning.algorithms.answers.reliability import MAX_CLASSES
from mlecs_lightning.data import SampleTable
from mlecs_lightning.data.sampling import sequential_loader
from mlecs_lightning.errors import FaultList
from mlecs_lightning.modules import MultimodalLM
from mlecs_lightning.rounds import EdgeLearner, Loaders, ServerLearner

__all__ = [
    "Acceptance",
    "Answered",
    "AnsweredAdapters",
    "Answers",
    "Questions",
    "answer_all",
    "taught",
]

Acceptance = Literal["all", "surer", "best", "agreed"]

_BATCH = 128


class Questions(NamedTuple):
    """The public samples that a party answers.

    Attributes:
        asked: The training samples without a target.
        checks: Validation samples, whose targets tell how right an answer is; empty if there are
            none, or if nothing is asked.
    """

    asked: SampleTable
    checks: SampleTable

    @classmethod
    def of(cls, loaders: Loaders, *, checked: bool) -> Questions:
        """Return the questions to a party.

        Args:
            loaders: Its data.
            checked: Whether it answers validation samples as well.
        """
        table = loaders.public.table
        asked = table.select((~table.labelled()).nonzero().flatten().tolist())
        if not checked or not len(asked) or loaders.checks is None:
            return cls(asked, table.select([]))
        return cls(asked, loaders.checks)

    def __len__(self) -> int:
        """Return the number of samples in both parts."""
        return len(self.asked) + len(self.checks)

    def calibrated(self, labels: Labels) -> Labels:
        """Return a party's answers to ``asked``, with calibrated confidences if that is possible.

        Args:
            labels: Its answers to both parts.
        """
        answers, checks = labels.split(len(self.asked))
        return calibrated(answers, checks, self.checks.targets)

    def readable(self, labels: Labels, module: MultimodalLM) -> Labels:
        """Return a party's answers that every language model of a module can be trained on.

        The model that wrote an answer may have more positions, and its words may be tokens that are
        not embedded here. Such answers are left empty.

        Args:
            labels: The answers to ``asked``, or to both parts.
            module: The module of whoever learns from them.
        """
        rooms = [module.tower(name).room() for name in module.towers]
        asked = (*self.asked.instructions, *self.checks.instructions)
        pairs = list(zip(asked, labels.texts, strict=False))
        fits = {pair: all(room.holds(*pair) for room in rooms) for pair in set(pairs)}
        return labels.where(fits[pair] for pair in pairs)


@dataclass(frozen=True, kw_only=True)
class Answered(Aggregate):
    """The answers of the clients.

    Attributes:
        votes: Each client's answers, and its number of private samples.
    """

    votes: tuple[tuple[Labels, float], ...]


@dataclass(frozen=True, kw_only=True)
class AnsweredAdapters(GroupedAdapters, Answered):
    """Aggregated adapters, and the answers of the clients."""


@dataclass(frozen=True)
class Answers:
    """How clients and server exchange pseudo-labels of the public samples without a target.

    After its training, a client answers all of these samples and sends texts and probabilities. The
    server forms a consensus, trains on it, and sends its own answers down in the next round. Where
    a client accepts them, its public pass uses them as targets. The server's answers are a function
    of its weights, and a client's own ones of its weights at the start of the round, so nothing is
    kept between rounds and a resumed run stays exact. In round 0 nothing is sent down, because no
    client has answered yet.

    With ``calibrate``, or a consensus other than ``similarity``, all parties also answer the public
    validation samples. Their targets are known to all and nobody trains on them, so they tell who
    is right, and how often.

    All models share the space of texts, whatever their encoders, ranks and vocabularies, so answers
    also pass between groups of backbones.

    Source: our choice, after federated distillation (FedMD, arXiv 1910.03581). The ML-ECS paper has
    no such exchange, so it is off by default. The defaults here are those of the registered study
    over five splits of two data sets; calibrated answers have not won one.

    Attributes:
        consensus: How the clients' answers are combined; see `similarity_consensus` and
            `voted_consensus`. Where answers and targets are more than `MAX_CLASSES` distinct texts,
            as free text is, they are always combined by similarity.
        server_threshold: Minimum confidence of the consensus for the server to train on it, in
            0..1.
        client_threshold: Minimum confidence of an answer that clients train on, in 0..1.
        accept: Which of the server's answers a client trains on: ``all`` of them; those of which
            the server is ``surer`` than the client, and those on which both agree; the ``best``,
            which is the same, but where the client is surer it trains on its own answer; or those
            that are ``agreed``, which both give.
        calibrate: Whether all confidences are calibrated on the public validation samples, which
            all parties answer as well; see `calibrated`. Without it they are probabilities under
            the models.
        share: Share of the accepted answers that a client trains on, drawn anew in each round, in
            (0, 1]. The fewer, the more the samples with a target count in a batch.
    """

    consensus: Consensus = "similarity"
    server_threshold: float = 0.5
    client_threshold: float = 0.5
    accept: Acceptance = "all"
    calibrate: bool = False
    share: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        faults = FaultList(
            f"algorithm.init_args.answers.{name} must lie in [0, 1], got {value}"
            for name in ("server_threshold", "client_threshold")
            if not 0 <= (value := getattr(self, name)) <= 1
        )
        if not 0 < self.share <= 1:
            faults.append(f"algorithm.init_args.answers.share must lie in (0, 1], got {self.share}")
        faults.raise_any()

    # Questions and answers ------------------------------------------------------------------

    def questions(self, loaders: Loaders) -> Questions:
        """Return the samples that a party answers."""
        checked = self.calibrate or self.consensus != "similarity"
        return Questions.of(loaders, checked=checked)

    def answer(self, learner: EdgeLearner | ServerLearner, questions: Questions) -> Labels:
        """Return a model's answers to both parts of the questions, one after the other."""
        return answer_all(learner, questions.asked) + answer_all(learner, questions.checks)

    # Learning from answers ------------------------------------------------------------------

    def agreed(self, votes: Sequence[tuple[Labels, float]], questions: Questions) -> Labels | None:
        """Return the consensus of weighted votes on ``questions.asked``; ``None`` without votes.

        Args:
            votes: The answers of each client to both parts of the questions, and its weight.
            questions: The questions.
        """
        count = len(questions.asked)
        if not votes or not count:
            return None
        answers = [answered for answered, _ in votes]
        known = ("",) * count + questions.checks.targets
        classes = {*distinct(answers), *known} - {""}
        if self.consensus == "similarity" or len(classes) > MAX_CLASSES:
            asked = [
                questions.calibrated(each) if self.calibrate else each.split(count)[0]
                for each in answers
            ]
            return similarity_consensus(asked, [weight for _, weight in votes])
        return voted_consensus(answers, known, method=self.consensus).split(count)[0]

    def accepted(self, own: Labels, theirs: Labels, questions: Questions, *, round: int) -> Labels:
        """Return what a client trains on in place of the targets of ``questions.asked``.

        Args:
            own: The client's answers to both parts of the questions; not used with ``all``.
            theirs: The server's answers to them.
            questions: The questions.
            round: The round, from which the share is drawn.
        """
        if not theirs.texts:
            return Labels.none()
        received = questions.calibrated(theirs) if self.calibrate else theirs
        received = received.split(len(questions.asked))[0]
        if self.accept != "all":
            mine = questions.calibrated(own) if self.calibrate else own
            received = chosen(mine.split(len(questions.asked))[0], received, self.accept)
        received = received.above(self.client_threshold)
        return received if self.share == 1 else self._drawn(received, round)

    def _drawn(self, labels: Labels, round: int) -> Labels:
        """Keep a share of the answers, the same for all clients."""
        kept = np.random.default_rng(round).random(len(labels.texts)) < self.share
        confidence = torch.where(torch.from_numpy(kept), labels.confidence, -1.0)
        return Labels(labels.texts, confidence).above(0.0)


def answer_all(learner: EdgeLearner | ServerLearner, table: SampleTable) -> Labels:
    """Return a model's answers to N samples; none to a sample that it has no input of.

    Args:
        learner: The party that answers.
        table: The samples.
    """
    if not len(table):
        return Labels.none()
    batches = sequential_loader(table, _BATCH)
    texts, confidence = list[str](), list[Tensor]()
    for spoken, probability in learner.answer(batches):
        texts += spoken
        confidence.append(probability.cpu())
    sensed = table.present.any(dim=1)
    answered = tuple(t if there else "" for t, there in zip(texts, sensed, strict=True))
    return Labels(answered, torch.cat(confidence)).above(0.0)


def taught(loaders: Loaders, labels: Labels | None) -> Loaders:
    """Return loaders in which public samples without a target have answers as targets.

    Args:
        loaders: The loaders.
        labels: Answers to `Questions.asked`, or nothing.
    """
    if labels is None or not labels.texts:
        return loaders
    answers = labels.by_id(Questions.of(loaders, checked=False).asked.ids)
    known = loaders.public.table.with_targets(answers)
    return loaders._replace(public=loaders.public.over(known))


def chosen(own: Labels, theirs: Labels, accept: Acceptance) -> Labels:
    """Choose for each of N samples between a client's answer and the server's; see `Answers`.

    Args:
        own: The client's answers.
        theirs: The server's answers.
        accept: What the client accepts.
    """
    texts, confidence = [], torch.maximum(own.confidence, theirs.confidence)
    surer = (theirs.confidence > own.confidence).tolist()
    for mine, told, better in zip(own.texts, theirs.texts, surer, strict=True):
        if mine == told or (better and accept != "agreed"):
            texts.append(told)
        else:
            texts.append(mine if accept == "best" else "")
    return Labels(tuple(texts), confidence).above(0.0)
