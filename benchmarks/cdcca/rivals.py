"""Methods that adapt a device without labels and without the cloud, to compare CD-CCA with.

Each device begins as CD-CCA's does, a copy of the student, looks at the same batches and takes one
optimiser step for each. Nothing is sent. All read the model's own answers, as a language model has
no fixed classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mlecs_lightning.algorithms import CDCCA, Steps
from mlecs_lightning.algorithms.cdcca.uncertainty import predictive_entropy
from mlecs_lightning.functional import distillation_loss
from mlecs_lightning.modules import EdgeModule, Losses
from mlecs_lightning.nn.tower import TowerOutput
from mlecs_lightning.rounds import (
    ClientUpdate,
    EdgeLearner,
    Loaders,
    RoundContext,
    ServerLearner,
)
from mlecs_lightning.types import Batch
from mlecs_lightning.wire import Message

__all__ = ["TENT", "CoTTA", "PseudoLabels"]


class _Alone(CDCCA):
    """A device that adapts itself; the cloud only trains and delivers the student."""

    def __init__(
        self, *, token_dropout: float = 0.3, student_warmup: float = 1.0, steps: Steps | None = None
    ) -> None:
        """Set the warm-up, which is CD-CCA's, and the number of batches of a round."""
        super().__init__(
            distillation="none",
            token_dropout=token_dropout,
            student_warmup=student_warmup,
            steps=steps,
        )

    def client_update(
        self, edge: EdgeLearner, loaders: Loaders, broadcast: Message | None, ctx: RoundContext
    ) -> ClientUpdate:
        """Take one step for each batch that CD-CCA's device would look at."""
        assert loaders.private is not None
        stream = loaders.private
        batches = max(1, min(self.steps.private, len(stream) // stream.batch_size))
        seen = stream.take(batches, seed=ctx.seed_for(edge.name, "private"))
        return ClientUpdate(None, self.adapt(edge, seen))

    def adapt(self, edge: EdgeLearner, batches: Iterable[Batch]) -> dict[str, float]:
        """Train the device and return the losses."""
        raise NotImplementedError


def _read(module: EdgeModule, batch: Batch) -> tuple[TowerOutput, list[str]]:
    """Return a pass over the model's own answers, without dropout."""
    module.eval()
    features, present = module.features(batch)
    tower = module.tower()
    with torch.no_grad():
        answers = tower.generate(tower.embed(features, present), batch.instructions)
    return tower(features, present, batch.instructions, answers), answers


class TENT(_Alone):
    """TENT (arXiv 2006.10726): minimises the entropy of the predictions over the norm layers.

    Those of encoders and connector; the language model is frozen, as for all methods here.
    """

    def adapt(self, edge: EdgeLearner, batches: Iterable[Batch]) -> dict[str, float]:
        """See `_Alone`."""
        with _norms_alone(edge.module):
            return edge.fit(batches, self.entropy, stage="private")

    def entropy(self, module: EdgeModule, batch: Batch) -> Losses:
        """Return the mean entropy of the next-word distributions over the own answers."""
        output, _ = _read(module, batch)
        p = output.logits.float().softmax(dim=-1)
        return {"loss": predictive_entropy(p, output.labels >= 0).mean()}


@contextmanager
def _norms_alone(module: EdgeModule) -> Iterator[None]:
    norms = [m for m in module.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)]
    kept = {id(p) for layer in norms for p in layer.parameters()}
    others = [p for p in module.trainable_parameters() if id(p) not in kept]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


class PseudoLabels(_Alone):
    """Pseudo-labels (Lee, ICML 2013 workshop): own answers of probability 0.5 at least."""

    def adapt(self, edge: EdgeLearner, batches: Iterable[Batch]) -> dict[str, float]:
        """See `_Alone`."""
        return edge.fit(batches, self.own_answers, stage="private")

    def own_answers(self, module: EdgeModule, batch: Batch) -> Losses:
        """Return the cross entropy of the answers that the model is sure of; 0 without any."""
        output, _ = _read(module, batch)
        spoken = output.labels >= 0
        each = nn.functional.cross_entropy(
            output.logits.float().transpose(1, 2),
            output.labels,
            ignore_index=-100,
            reduction="none",
        )
        sure = (-each.sum(dim=1)).exp() >= 0.5
        spoken = spoken & sure.unsqueeze(1)
        return {"loss": each.masked_fill(~spoken, 0.0).sum() / spoken.sum().clamp(min=1)}


class _Average(nn.Module):
    """The moving average of a device's weights, and the weights that it was delivered with."""

    def __init__(self, module: EdgeModule) -> None:
        super().__init__()
        for n, parameter in enumerate(module.trainable_parameters()):
            self.register_buffer(f"mean{n}", parameter.detach().clone())
            self.register_buffer(f"source{n}", parameter.detach().clone())

    def start(self, parameters: list[nn.Parameter]) -> None:
        """Begin anew from the present weights."""
        for n, parameter in enumerate(parameters):
            self.get_buffer(f"mean{n}").copy_(parameter.detach())
            self.get_buffer(f"source{n}").copy_(parameter.detach())

    @torch.no_grad()
    def follow(self, parameters: list[nn.Parameter], *, decay: float, restore: float) -> None:
        """Move the average towards the weights; set some of these to their first values."""
        for n, parameter in enumerate(parameters):
            self.get_buffer(f"mean{n}").lerp_(parameter, 1 - decay)
            back = torch.rand(parameter.shape) < restore
            parameter.copy_(torch.where(back, self.get_buffer(f"source{n}"), parameter))

    @contextmanager
    def in_place(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        """Put the average in the place of the weights within the context."""
        own = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            for n, parameter in enumerate(parameters):
                parameter.copy_(self.get_buffer(f"mean{n}"))
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, own, strict=True):
                    parameter.copy_(value)


class CoTTA(_Alone):
    """CoTTA (arXiv 2203.13591): learns from the moving average of its own weights.

    Decay 0.999, and each weight returns to its first value with probability 0.01 a step, as in the
    paper. The teacher's average over augmented inputs is left out: sensors have no augmentations in
    common.
    """

    decay, restore = 0.999, 0.01

    def build_edge(self, module: EdgeModule, modalities: Iterable[str]) -> None:
        """Add the average."""
        module.add_module("cotta", _Average(module))

    def adds_parts(self) -> bool:
        """See `Algorithm`."""
        return True

    def deliver(self, server: ServerLearner, edge: EdgeModule) -> None:
        """Copy the student, and begin the average with it."""
        super().deliver(server, edge)
        average = edge.get_submodule("cotta")
        assert isinstance(average, _Average)
        average.start(edge.trainable_parameters())

    def adapt(self, edge: EdgeLearner, batches: Iterable[Batch]) -> dict[str, float]:
        """See `_Alone`."""
        average = edge.module.get_submodule("cotta")
        assert isinstance(average, _Average)
        parameters, losses = edge.module.trainable_parameters(), []
        for batch in batches:
            losses.append(edge.fit([batch], self.from_average, stage="private")["private/loss"])
            average.follow(parameters, decay=self.decay, restore=self.restore)
        return {"private/loss": sum(losses) / len(losses)}

    def from_average(self, module: EdgeModule, batch: Batch) -> Losses:
        """Return the divergence from the average's predictions, over the average's answers."""
        average = module.get_submodule("cotta")
        assert isinstance(average, _Average)
        with average.in_place(module.trainable_parameters()), torch.no_grad():
            teacher, answers = _read(module, batch)
        module.train()
        features, present = module.features(batch)
        student = module.tower()(features, present, batch.instructions, answers)
        mask: Tensor = student.labels >= 0
        return {"loss": distillation_loss(student.logits, teacher.logits, mask=mask)}
