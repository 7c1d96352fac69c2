"""Representations that clients send up, and what they agree on, sample by sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mlecs_lightning.algorithms.answers import AnsweredAdapters
from mlecs_lightning.data import SampleTable
from mlecs_lightning.data.sampling import sequential_loader
from mlecs_lightning.modules import MultimodalLM
from mlecs_lightning.rounds import EdgeLearner
from mlecs_lightning.types import Batch
from mlecs_lightning.wire import Message, Schema, TensorField
from mlecs_lightning.wire.messages import Scalar, ScalarField

__all__ = ["RepresentationMean", "Representations", "RepresentedAdapters"]

_BATCH = 128
_FUSED, _CONFIDENCE = "representations/fused", "representations/confidence"


@dataclass(frozen=True, kw_only=True)
class RepresentedAdapters(AnsweredAdapters):
    """Aggregated adapters and answers, and the clients' mean representations.

    Attributes:
        agreed: (N, D) result of `RepresentationMean`; ``None`` if nobody has sent any.
    """

    agreed: Tensor | None


@dataclass(frozen=True)
class Representations:
    """How clients send their fused representations of the public samples, and the server uses them.

    After its training, a client sends f of every public sample in float16, with a confidence. The
    server forms a weighted mean for each sample (`RepresentationMean`), and SE-CCL draws f of its
    towers to it. Nothing is kept between rounds, so a resumed run stays exact. This makes sense
    only where the clients' f lie in the server's space: see ``fused_weight`` of `MLECS`.

    Source: the ML-ECS abstract names fused representations that are exchanged; confidence and
    weights are our choice.

    Attributes:
        weight: Weight of the distance from the clients' mean in SE-CCL.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        if not self.weight > 0:
            raise ValueError(
                f"algorithm.init_args.representations.weight must be positive, got {self.weight}; "
                "leave `representations` out to send none"
            )

    # In a message ---------------------------------------------------------------------------

    @staticmethod
    def schema(width: int) -> Schema:
        """Return the schema of the component ``representations`` of an update.

        Args:
            width: Width D of the shared latent space.
        """
        return Schema(
            {
                _FUSED: TensorField((None, width), torch.float16),
                _CONFIDENCE: TensorField((None,), torch.float16),
            },
            {"rightness": ScalarField(float, low=0.0, high=1.0)},
        )

    def sent(
        self, edge: EdgeLearner, table: SampleTable
    ) -> tuple[dict[str, Tensor], dict[str, Scalar]]:
        """Return a client's representations as tensors and scalars of a message.

        The confidence is the probability of the target where it is known, and of the model's own
        answer elsewhere; 0 for a sample that the client has no input of. ``rightness`` is the mean
        probability of the known targets, 1/2 if none is known.

        Args:
            edge: The client, after its training.
            table: The N public samples, restricted to the client's modalities.
        """
        parts = edge.map(sequential_loader(table, _BATCH), _read)
        fused = torch.cat([f.float() for f, _ in parts]).cpu()
        sure = torch.cat([p.float() for _, p in parts]).cpu()
        sensed = table.present.any(dim=1)
        known = table.labelled() & sensed
        rightness = float(sure[known].mean().clamp(0, 1)) if known.any() else 0.5
        confidence = torch.where(sensed, sure.clamp(0, 1), 0.0)
        tensors = {_FUSED: F.normalize(fused, dim=-1).half(), _CONFIDENCE: confidence.half()}
        return tensors, {"rightness": rightness}

    @staticmethod
    def faults(message: Message, *, samples: int) -> list[str]:
        """Return what is wrong with the representations of a message that fits the schema.

        Args:
            message: The message.
            samples: Expected number of samples.
        """
        fused, confidence = message.tensors[_FUSED], message.tensors[_CONFIDENCE]
        faults = []
        if len(fused) != samples or len(confidence) != samples:
            faults.append(
                f"{len(fused)} representations with {len(confidence)} confidences, expected "
                f"{samples}"
            )
        if not torch.isfinite(fused).all():
            faults.append("a representation is not finite")
        # Negated, so that NaN is a fault as well.
        if len(confidence) and not (confidence.amin() >= 0 and confidence.amax() <= 1):
            faults.append("a confidence of a representation is outside of [0, 1]")
        return faults


class _Sum(NamedTuple):
    """What clients with the same sensors have sent."""

    fused: Tensor
    confidence: Tensor
    rightness: list[float]


@dataclass
class RepresentationMean:
    """MMA for each sample: a(x) = sum_j w_j(x) f_j(x) / sum_j w_j(x), over unit vectors f_j(x).

    w_j(x) = c_j(x) r(M_j): the client's confidence in the sample, times the mean rightness of the
    clients with its sensors on the public samples whose targets are known. The length of a(x), at
    most 1, says how far the clients agree. Memory grows with the number of different sets of
    sensors, not with that of clients. Received vectors are scaled to length 1, so no client can
    gain weight by a long one; it does claim its confidence and its rightness (our choice).
    """

    _sums: dict[tuple[str, ...], _Sum] = field(default_factory=dict)

    def watch(self, updates: Iterable[tuple[str, Message]]) -> Iterator[tuple[str, Message]]:
        """Pass updates on, and add the representations of each."""
        for client, message in updates:
            self.add(message)
            yield client, message

    def add(self, message: Message) -> None:
        """Add the representations of one checked update."""
        # In float64, so that the order of the clients has no effect.
        fused = F.normalize(message.tensors[_FUSED].double(), dim=-1)
        confidence = message.tensors[_CONFIDENCE].double()
        sensors, rightness = message.scalars["modalities"], message.scalars["rightness"]
        assert isinstance(sensors, tuple)
        assert isinstance(rightness, float)
        weighted = confidence[:, None] * fused
        if sensors not in self._sums:
            self._sums[sensors] = _Sum(weighted, confidence, [rightness])
            return
        total = self._sums[sensors]
        total.fused.add_(weighted)
        total.confidence.add_(confidence)
        total.rightness.append(rightness)

    def result(self) -> Tensor | None:
        """Return a (N, D), zero where no client is sure of anything; ``None`` without updates."""
        if not self._sums:
            return None
        right = {sensors: sum(s.rightness) / len(s.rightness) for sensors, s in self._sums.items()}
        fused = torch.stack([right[k] * s.fused for k, s in self._sums.items()]).sum(dim=0)
        weight = torch.stack([right[k] * s.confidence for k, s in self._sums.items()]).sum(dim=0)
        mean = fused / weight.clamp_min(torch.finfo(weight.dtype).tiny)[:, None]
        return torch.where(weight[:, None] > 0, mean, 0.0).float()


def _read(module: MultimodalLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return f (B, D), and the probability (B,) of each target, or else of the model's answer.

    The probability of an empty answer is 0.
    """
    embeddings, tower = module.embed(batch), module.tower()
    answers = tower.generate(embeddings, batch.instructions)
    texts = [known or said for known, said in zip(batch.targets, answers, strict=True)]
    output = tower.backbone(embeddings.prompt, batch.instructions, texts, words=embeddings.words)
    return embeddings.fused, output.probability()
