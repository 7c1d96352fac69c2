"""AKD: adapter-based knowledge distillation, the cloud's side of CD-CCA."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mlecs_lightning.algorithms.cdcca.tokens import Tokens
from mlecs_lightning.functional import (
    distillation_loss,
    hidden_distance,
    sum_over_ranks,
    world_size,
)
from mlecs_lightning.modules import Losses, ServerModule
from mlecs_lightning.nn.tower import TowerOutput
from mlecs_lightning.rounds import ServerLearner
from mlecs_lightning.types import Batch

__all__ = ["AKD", "Lesson", "teachers_answers", "vocabulary_faults"]


class Lesson(NamedTuple):
    """What the student learns from in one step.

    Attributes:
        tokens: Token features of devices; ``None`` if none came.
        answers: What the teacher says of them, one sentence a sample.
        replay: Public samples with their true targets.
    """

    tokens: Tokens | None
    answers: tuple[str, ...]
    replay: Batch


@dataclass(frozen=True)
class AKD:
    """The teacher is the server's LLM, the student the SLM beside it; only its adapter learns.

    L = T^2 KL(teacher || student) + hidden_weight (1 - cos of the hidden states), over the words of
    the teacher's own answer, since nobody sends targets, + replay_weight L_LM(public samples).

    Attributes:
        temperature: T.
        hidden_weight: Weight of the hidden states. Each model's mean over the prompt positions
            comes through its readout, a projection into the space that all share; the student's is
            trained, the teacher's stays.
        replay_weight: Weight of L_LM on public samples, against forgetting (our choice).
        words_alone: Learn the teacher's words in place of its logits and hidden states
            (sequence-level distillation, arXiv 1606.07947).
    """

    temperature: float
    hidden_weight: float
    replay_weight: float
    words_alone: bool = False

    def teach(self, server: ServerLearner, lessons: Iterable[Lesson]) -> dict[str, float]:
        """Take one optimiser step a lesson; return the losses."""
        with _student_alone(server.module):
            return server.fit(lessons, self.loss, stage="akd")

    def loss(self, server: ServerModule, lesson: Lesson) -> Losses:
        """Return the losses of one step."""
        with torch.no_grad():
            features, present = server.features(lesson.replay)
        text = (lesson.replay.instructions, lesson.replay.targets)
        replay = server.mean_loss(server.tower("slm")(features, present, *text))
        losses, total = {"replay": replay}, self.replay_weight * replay
        if lesson.tokens is not None:
            taught = self._taught(server, lesson.tokens, lesson.answers)
            losses, total = losses | taught, total + taught["taught"]
        return {"loss": total, **losses}

    def _taught(self, server: ServerModule, tokens: Tokens, answers: tuple[str, ...]) -> Losses:
        given = (tokens.features, tokens.present, tokens.instructions, answers)
        student: TowerOutput = server.tower("slm")(*given)
        if self.words_alone:
            return {"taught": server.mean_loss(student)}
        tower = server.tower("llm").eval()  # a teacher that drops nothing out
        with torch.no_grad():
            teacher: TowerOutput = tower(*given)
        mask = student.labels >= 0
        logits = distillation_loss(
            student.logits, teacher.logits, mask=mask, temperature=self.temperature
        )
        hidden = hidden_distance(student.view, teacher.view)
        samples = torch.tensor(tokens.samples, device=hidden.device)
        logits = _over_ranks(server, logits, mask.sum())
        hidden = _over_ranks(server, hidden, samples)
        return {
            "taught": logits + self.hidden_weight * hidden,
            "logits": logits.detach(),
            "hidden": hidden.detach(),
        }


def _over_ranks(server: ServerModule, mean: Tensor, count: Tensor) -> Tensor:
    """Scale a mean over this process's part so that the mean over processes is that of all.

    As `ServerModule.mean_loss` does for L_LM.
    """
    if not (server.sharded and server.training):
        return mean
    return mean * (world_size() * count / sum_over_ranks(count))


def teachers_answers(server: ServerLearner, tokens: Tokens, *, batch_size: int) -> list[str]:
    """Return what the teacher says of every sample, given the tokens that were sent."""

    def answer(module: ServerModule, part: Tokens) -> list[str]:
        tower = module.tower("llm")
        return tower.generate(tower.connector(part.features, part.present), part.instructions)

    starts = range(0, tokens.samples, batch_size)
    parts = [tokens.rows(range(start, min(start + batch_size, tokens.samples))) for start in starts]
    return [text for texts in server.map(parts, answer) for text in texts]


@contextmanager
def _student_alone(server: ServerModule) -> Iterator[None]:
    """Train the student's adapter and the projection of its hidden states, and nothing else.

    Extractors and connector stay what the devices have.
    """
    own = ("towers.slm.backbone.", "towers.slm.readout.")
    others = [
        p for name, p in server.named_parameters() if p.requires_grad and not name.startswith(own)
    ]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def vocabulary_faults(server: ServerModule) -> list[str]:
    """Say how the vocabularies of teacher and student differ: logits must mean the same words."""
    teacher, student = (server.tower(name).backbone for name in ("llm", "slm"))
    words, other = (b.tokenizer.get_vocab() for b in (teacher, student))
    if words == other and teacher.tokenizer.eos_token_id == student.tokenizer.eos_token_id:
        return []
    unlike = sorted(w for w in words.keys() | other if words.get(w) != other.get(w))
    return [
        f"server.backbone.model {teacher.settings.model!r} and edge.backbone.model "
        f"{student.settings.model!r} have different vocabularies ({len(words)} and {len(other)} "
        f"tokens; {len(unlike)} differ, such as {unlike[:3]}): CDCCA compares their logits word by "
        "word; take two models of one family"
    ]
