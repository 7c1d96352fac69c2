"""FedMD with answers as text (after arXiv 1910.03581)."""

from __future__ import annotations

from collections.abc import Iterable

from mlecs_lightning.algorithms.answers import Answered, Answers, Labels, Questions
from mlecs_lightning.algorithms.answers.training import AnsweringTraining, Weights
from mlecs_lightning.algorithms.base import PassOrder, Steps
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.rounds import Loaders, RoundContext, ServerLearner
from mlecs_lightning.wire import Message

__all__ = ["FedMD"]


class FedMD(AnsweringTraining):
    """Clients and server exchange answers to public samples, and nothing else.

    No weight leaves a device: each keeps its adapter, so backbones, ranks and adapted layers may
    all differ. A round costs the answers, a few bytes a public sample (see `Answers`).

    As in FedMD (arXiv 1910.03581), parties learn from one another's outputs on public data. Ours
    differs in that an output is a sentence with its probability, where theirs is a vector of class
    scores; the server has a model of its own, which learns from the consensus and answers in turn;
    and only public samples without a target are asked.
    """

    def __init__(
        self,
        *,
        steps: Steps | None = None,
        order: PassOrder = "private_first",
        answers: Answers | None = None,
        weights: Weights = "samples",
    ) -> None:
        """Set the passes and the exchange.

        Args:
            steps: Optimiser steps of each pass.
            order: Which of a client's passes comes first.
            answers: How answers are exchanged; by default as `Answers` says.
            weights: Whether clients send the number of their private samples, by which their
                answers count (``samples``), or all count alike and the number stays with them
                (``equal``).
        """
        super().__init__(steps=steps, order=order, answers=answers or Answers(), weights=weights)

    def warmup(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> dict[str, float]:
        """Train the server's LLM on public data.

        Raises:
            ConfigurationError: If all public samples have a target, so that nothing is asked.
        """
        self._refuse_without_questions(loaders)
        return super().warmup(server, loaders, ctx)

    def after_warmup(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> dict[str, float]:
        """Check the same where the warm-up was loaded."""
        self._refuse_without_questions(loaders)
        return super().after_warmup(server, loaders, ctx)

    @staticmethod
    def _refuse_without_questions(loaders: Loaders) -> None:
        if not len(Questions.of(loaders, checked=False)):
            raise ConfigurationError(
                "algorithm FedMD: every public sample has a target, so there is nothing to answer; "
                "add public samples without a target, or hide some with "
                "data.init_args.public_labelled"
            )

    def broadcast(
        self, server: ServerLearner, loaders: Loaders, ctx: RoundContext
    ) -> Iterable[tuple[str, Message]]:
        """Send all participants the server's answers."""
        tensors, scalars = self.server_answers(server, loaders, ctx)
        for client in ctx.participants:
            yield client, Message(tensors, scalars)

    def aggregate(self, updates: Iterable[tuple[str, Message]], ctx: RoundContext) -> Answered:
        """Collect the clients' answers."""
        votes = list[tuple[Labels, float]]()
        for _, message in updates:
            votes += self.vote(message)
        return Answered(clients=len(votes), votes=tuple(votes))
