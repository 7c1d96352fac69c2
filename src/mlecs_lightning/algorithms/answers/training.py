"""Local training with an exchange of answers: the base of `FedAvg` and of `FedMD`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from mlecs_lightning.algorithms.answers.exchange import Answered, Answers, taught
from mlecs_lightning.algorithms.answers.labels import Labels
from mlecs_lightning.algorithms.base import LocalTraining, PassOrder, Steps
from mlecs_lightning.extras import Need
from mlecs_lightning.modules import EdgeModule
from mlecs_lightning.rounds import ClientUpdate, EdgeLearner, Loaders, RoundContext, ServerLearner
from mlecs_lightning.wire import Message, Schema
from mlecs_lightning.wire.messages import Scalar, ScalarField

__all__ = ["MAX_SAMPLES", "AnsweringTraining", "Weights", "told_samples"]

MAX_SAMPLES = 2**31 - 1
"""Largest number of private samples that a client may claim: it is the client's weight.

Our choice: more than any device holds, and exact in every number format that a weight passes
through. It does not expose a client that exaggerates; ``median`` and ``trimmed_mean`` ignore the
weights.
"""

Weights = Literal["samples", "equal"]


class AnsweringTraining(LocalTraining):
    """Local training of clients that say who they are, and that may exchange answers.

    What the messages hold beside that is up to the subclass.
    """

    communicates = True
    registers = ("samples",)

    def __init__(
        self,
        *,
        steps: Steps | None,
        order: PassOrder,
        answers: Answers | None,
        weights: Weights,
    ) -> None:
        """Set the passes and the exchange.

        Args:
            steps: Optimiser steps of each pass.
            order: Which of a client's passes comes first.
            answers: How clients and server exchange answers; ``None`` if they do not.
            weights: Whether clients send the number of their private samples as their weight
                (``samples``), or all have one weight and the number stays with them (``equal``).
        """
        super().__init__(steps=steps, order=order)
        self.answers = answers
        self.weights = weights
        self._asked = 0

    def needs(self) -> tuple[Need, ...]:
        """Name the packages that compare answers, and calibrate them."""
        if self.answers is None:
            return ()
        modules = ("rouge_score", *(["sklearn"] if self.answers.calibrate else []))
        return (Need("algorithm.init_args.answers", "answers", modules),)

    def downlink(self, edge: EdgeModule) -> Schema:
        """Declare the server's answers."""
        return Schema() if self.answers is None else Labels.schema()

    def uplink(self, edge: EdgeModule) -> Schema:
        """Declare the modality names, the number of private samples and the client's answers."""
        # The server knows its clients' sensors, so none can gain weight by naming more.
        scalars = {"modalities": ScalarField(tuple, equal=edge.modalities)}
        if self.weights == "samples":
            scalars["samples"] = ScalarField(int, low=1, high=MAX_SAMPLES)
        answers = Schema() if self.answers is None else Labels.schema()
        return Schema(answers.tensors, {**scalars, **answers.scalars})

    def server_answers(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> tuple[dict[str, Tensor], dict[str, Scalar]]:
        """Return the part of a broadcast that holds the server's answers: none in round 0."""
        if self.answers is None:
            return {}, {}
        questions = self.answers.questions(loaders)
        self._asked = len(questions)
        if ctx.round == 0:
            return Labels.none().parts()
        return self.answers.answer(server, questions).parts()

    def refusals(self, server: ServerLearner, message: Message) -> list[str]:
        """Return what is wrong with a client's answers."""
        if self.answers is None:
            return super().refusals(server, message)
        return super().refusals(server, message) + Labels.faults(message, samples=self._asked)

    def client_update(
        self, edge: EdgeLearner, loaders: Loaders, broadcast: Message | None, ctx: RoundContext
    ) -> ClientUpdate:
        """Take the passes with the answers that the client accepts, and send its own ones."""
        assert broadcast is not None
        assert loaders.private is not None
        facts: dict[str, Scalar] = {"modalities": edge.module.modalities}
        if self.weights == "samples":
            facts["samples"] = len(loaders.private)
        if self.answers is None:
            losses = self.local_passes(edge, loaders, ctx, broadcast)
            return ClientUpdate(Message({}, facts), losses)
        known = self._known(self.answers, edge, loaders, Labels.of(broadcast), ctx)
        losses = self.local_passes(edge, known, ctx, broadcast)
        answered = self.answers.answer(edge, self.answers.questions(loaders))
        tensors, scalars = answered.parts()
        return ClientUpdate(Message(tensors, {**facts, **scalars}), losses)

    @staticmethod
    def _known(
        answers: Answers, edge: EdgeLearner, loaders: Loaders, theirs: Labels, ctx: RoundContext
    ) -> Loaders:
        """Return a client's loaders, with the answers that it accepts from the server."""
        if not theirs.texts:
            return loaders
        questions = answers.questions(loaders)
        own = Labels.none() if answers.accept == "all" else answers.answer(edge, questions)
        own, theirs = (questions.readable(each, edge.module) for each in (own, theirs))
        return taught(loaders, answers.accepted(own, theirs, questions, round=ctx.round))

    def vote(self, message: Message) -> Sequence[tuple[Labels, float]]:
        """Return a client's answers with their weight; nothing if none are exchanged."""
        return [] if self.answers is None else [(Labels.of(message), told_samples(message))]

    def server_update(
        self,
        server: ServerLearner,
        aggregate: Any,  # noqa: ANN401 - the algorithm's own class
        loaders: Loaders,
        ctx: RoundContext,
    ) -> dict[str, float]:
        """Train the server on public data, and on what the clients agree on."""
        if self.answers is not None and isinstance(aggregate, Answered):
            questions = self.answers.questions(loaders)
            votes = [(questions.readable(v, server.module), w) for v, w in aggregate.votes]
            found = self.answers.agreed(votes, questions)
            loaders = taught(loaders, found and found.above(self.answers.server_threshold))
        return super().server_update(server, aggregate, loaders, ctx)


def told_samples(message: Message) -> float:
    """Return the number of private samples that a client has told, or 1."""
    return float(message.scalars.get("samples", 1))  # type: ignore[arg-type]
