"""Adapter-based knowledge distillation (AKD), which CD-CCA runs in the cloud."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from mlecs_lightning.algorithms.cdcca.parts import Part, trained_tensors
from mlecs_lightning.algorithms.cdcca.tokens import Tokens
from mlecs_lightning.functional import (
    common_columns,
    distillation_loss,
    hidden_distance,
    position_distance,
    sum_over_ranks,
    world_size,
)
from mlecs_lightning.modules import Losses, ServerModule
from mlecs_lightning.nn.tower import TowerOutput
from mlecs_lightning.rounds import ServerLearner
from mlecs_lightning.types import Batch

__all__ = ["AKD", "Lesson", "teachers_answers", "vocabulary_faults"]


class Lesson(NamedTuple):
    """The training data of one step of the student.

    Attributes:
        tokens: Token features of devices; ``None`` if none arrived.
        answers: The teacher's answers from them, one sentence per sample.
        replay: Public samples with their true targets.
    """

    tokens: Tokens | None
    answers: tuple[str, ...]
    replay: Batch


@dataclass(frozen=True)
class AKD:
    """Distils the server's LLM, the teacher, into the adapter of the hosted SLM, the student.

    L = logits_weight T^2 KL(teacher || student) + answer_weight L_LM(the teacher's answer)
    + hidden_weight (1 - cos of the mean hidden states) + feature_weight (features at every
    position) + replay_weight L_LM(public samples). In all but the last term the teacher's own
    answer takes the place of the target, because devices send no targets.

    Attributes:
        temperature: Temperature T.
        logits_weight: Weight of the softened logits.
        answer_weight: Weight of the cross entropy on the teacher's answer.
        hidden_weight: Weight of the hidden states: each model's mean over the prompt positions,
            projected into the shared space by its readout. The student's readout is trained, the
            teacher's is fixed.
        feature_weight: Weight of the mean squared differences of query tokens (the soft prompt) and
            last hidden states, at every position, after an alignment layer that trains too; see
            `Alignment`.
        replay_weight: Weight of L_LM on public samples, against forgetting (our choice).
        words_alone: Whether the student learns the teacher's words instead of all else
            (sequence-level distillation, arXiv 1606.07947).
        train: What trains of the student; see `trained_tensors`.
    """

    temperature: float
    hidden_weight: float
    replay_weight: float
    words_alone: bool = False
    logits_weight: float = 1.0
    answer_weight: float = 0.0
    feature_weight: float = 0.0
    train: tuple[Part, ...] = ("lora",)

    def faults(self, key: str) -> list[str]:
        """List values out of range.

        Args:
            key: The YAML key of the values, for messages.
        """
        weights = ("logits_weight", "answer_weight", "hidden_weight", "feature_weight")
        faults = [
            f"{key}.{name} must be at least 0, got {getattr(self, name)}"
            for name in (*weights, "replay_weight")
            if not getattr(self, name) >= 0
        ]
        if not self.temperature > 0:
            faults.append(f"{key}.temperature must be above 0, got {self.temperature}")
        if not self.train:
            faults.append(f"{key}.train must name a part of {list(get_args(Part))}, got none")
        if not any(getattr(self, name) for name in weights):
            faults.append(f"{key}: one of {', '.join(weights)} must be above 0")
        return faults

    @property
    def aligns(self) -> bool:
        """Whether the server needs an `Alignment`."""
        return self.feature_weight > 0 and not self.words_alone

    def teach(self, server: ServerLearner, lessons: Iterable[Lesson]) -> dict[str, float]:
        """Take one optimiser step per lesson, and return the losses."""
        with _student_alone(server.module, self.train):
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
        given = (tokens.inputs(), tokens.present, tokens.instructions, answers)
        student: TowerOutput = server.tower("slm")(*given)
        if self.words_alone:
            return {"taught": server.mean_loss(student)}
        tower = server.tower("llm").eval()  # no dropout in the teacher
        with torch.no_grad():
            teacher: TowerOutput = tower(*given)
        mask = student.labels >= 0
        samples = torch.tensor(tokens.samples, device=mask.device)
        parts: dict[str, tuple[float, Tensor]] = {}
        if self.logits_weight:
            common = common_columns(student.logits, teacher.logits)
            logits = distillation_loss(*common, mask=mask, temperature=self.temperature)
            parts["logits"] = self.logits_weight, _over_ranks(server, logits, mask.sum())
        if self.answer_weight:
            parts["answer"] = self.answer_weight, server.mean_loss(student)
        hidden = hidden_distance(student.view, teacher.view)
        parts["hidden"] = self.hidden_weight, _over_ranks(server, hidden, samples)
        if self.feature_weight:
            parts["features"] = self.feature_weight, _features(server, student, teacher)
        taught = torch.stack([weight * loss for weight, loss in parts.values()]).sum()
        return {"taught": taught, **{name: loss.detach() for name, (_, loss) in parts.items()}}


def _features(server: ServerModule, student: TowerOutput, teacher: TowerOutput) -> Tensor:
    """Return the differences of query tokens and of last hidden states, summed."""
    align = server.get_submodule("alignment")
    prompt, hidden = align(student.embeddings.prompt, student.hidden)
    whole = torch.ones(prompt.shape[:2], dtype=torch.bool, device=prompt.device)
    mask = student.mask > 0
    queries = position_distance(prompt, teacher.embeddings.prompt, whole)
    states = position_distance(hidden, teacher.hidden, mask)
    return _over_ranks(server, queries, whole.sum()) + _over_ranks(server, states, mask.sum())


def _over_ranks(server: ServerModule, mean: Tensor, count: Tensor) -> Tensor:
    """Scale a mean over this rank's part so that the mean over ranks is that of the whole batch.

    As `ServerModule.mean_loss` does for L_LM.
    """
    if not (server.sharded and server.training):
        return mean
    # At least one: all answers of a global batch may be empty.
    return mean * (world_size() * count / sum_over_ranks(count).clamp(min=1))


def teachers_answers(server: ServerLearner, tokens: Tokens, *, batch_size: int) -> list[str]:
    """Return the teacher's answer to every sample, from the tokens that were sent."""

    def answer(module: ServerModule, part: Tokens) -> list[str]:
        tower = module.tower("llm")
        return tower.generate(tower.connector(part.inputs(), part.present), part.instructions)

    starts = range(0, tokens.samples, batch_size)
    parts = [tokens.rows(range(start, min(start + batch_size, tokens.samples))) for start in starts]
    return [text for texts in server.map(parts, answer) for text in texts]


@contextmanager
def _student_alone(server: ServerModule, train: Sequence[Part]) -> Iterator[None]:
    """Freeze all but the student's readout, the alignment and the named parts of the student.

    All else of extractors and connector must stay equal to what the devices have.
    """
    adapter = ("towers.slm.backbone.",) if "lora" in train else ()
    own = ("towers.slm.readout.", "alignment.", *adapter)
    kept = {id(p) for p in trained_tensors(server.tower("slm").connector, train).values()}
    others = [
        p
        for name, p in server.named_parameters()
        if p.requires_grad and not name.startswith(own) and id(p) not in kept
    ]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def vocabulary_faults(server: ServerModule) -> list[str]:
    """List differences between the vocabularies of teacher and student."""
    teacher, student = (server.tower(name).backbone for name in ("llm", "slm"))
    words, other = (b.tokenizer.get_vocab() for b in (teacher, student))
    if words == other and teacher.tokenizer.eos_token_id == student.tokenizer.eos_token_id:
        return []
    unlike = sorted(w for w in words.keys() | other if words.get(w) != other.get(w))
    return [
        f"server.backbone.model {teacher.settings.model!r} and edge.backbone.model "
        f"{student.settings.model!r} have different vocabularies ({len(words)} and {len(other)} "
        f"tokens; {len(unlike)} differ, such as {unlike[:3]}): CDCCA compares their logits word by "
        "word; choose two models of one family"
    ]
