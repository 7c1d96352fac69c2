"""Uncertainty-guided token sampling (UTS), which CD-CCA runs on the device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mlecs_lightning.algorithms.cdcca.tokens import Tokens
from mlecs_lightning.algorithms.cdcca.uncertainty import (
    dropout_variance,
    most_uncertain,
    predictive_entropy,
    relative_variance,
)
from mlecs_lightning.modules import EdgeModule
from mlecs_lightning.nn.extractors import PretrainedExtractor
from mlecs_lightning.rounds import EdgeLearner
from mlecs_lightning.types import Batch

__all__ = ["UTS", "Keep", "Looked", "Measure", "token_uncertainty", "tokens_of"]

Measure = Literal["answers", "probability", "features", "random", "random_samples"]
Keep = Literal["uncertain", "certain"]


class Looked(NamedTuple):
    """What a device finds when it looks at its samples, on the CPU.

    Attributes:
        tokens: The tokens of N samples.
        scores: (N, columns of ``tokens.present``) uncertainty of each token.
        sure: (N,) probability of the model's own answer; 1 where it was not asked for.
    """

    tokens: Tokens
    scores: Tensor
    sure: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Looked]) -> Looked:
        """Return all samples, concatenated."""
        return cls(
            Tokens.joined([part.tokens for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat([part.sure for part in parts]),
        )

    def split(self, parts: int) -> list[Looked]:
        """Return parts with equally many samples."""
        each = len(self.sure) // parts
        return [
            Looked(
                self.tokens.rows(range(n, n + each)),
                self.scores[n : n + each],
                self.sure[n : n + each],
            )
            for n in range(0, each * parts, each)
        ]


@dataclass(frozen=True)
class UTS:
    """Chooses the tokens that a device sends: uncertain samples first, then tokens of these.

    The two stages are those of the public code of CD-CCA; see docs/method.md.

    Attributes:
        token_fraction: Largest share rho of a round's tokens that is sent.
        measure: The uncertainty of a token: ``answers``, see `token_uncertainty`; ``probability``,
            one minus that of the model's own answer, which all tokens of a sample share, so that
            whole samples are sent; ``features``, the variance of its features over dropout passes
            of the encoders, which takes no pass of the language model; or, for comparison,
            ``random`` tokens or ``random_samples``.
        keep: Which tokens are sent, the ``uncertain`` or the ``certain`` ones.
        answer_threshold: Only samples are sent whose answer has a probability below this, the
            product over its words and its end; all samples with ``None``.
        passes: Number S of dropout passes.
        variance_weight: Weight of the variance relative to the entropy, under ``answers``.
        feature_dropout: Probability that an input value is dropped, under ``features``.
    """

    token_fraction: float
    measure: Measure
    keep: Keep
    answer_threshold: float | None
    passes: int
    variance_weight: float
    feature_dropout: float

    def faults(self, key: str) -> list[str]:
        """List values out of range.

        Args:
            key: The YAML key of the values, for messages.
        """
        threshold = self.answer_threshold
        ranges = {
            "token_fraction": (0 < self.token_fraction <= 1, "in (0, 1]"),
            "answer_threshold": (threshold is None or 0 < threshold <= 1, "null or in (0, 1]"),
            "passes": (self.passes >= 1, "at least 1"),
            "variance_weight": (self.variance_weight >= 0, "at least 0"),
            "feature_dropout": (0 < self.feature_dropout < 1, "in (0, 1)"),
        }
        return [
            f"{key}.{name} must be {allowed}, got {getattr(self, name)}"
            for name, (fits, allowed) in ranges.items()
            if not fits
        ]

    @property
    def all_of_them(self) -> bool:
        """Whether all tokens are sent, so that nothing needs to be measured."""
        return self.token_fraction == 1 and self.answer_threshold is None

    @property
    def reads(self) -> bool:
        """Whether the model reads its own answers, to tell how probable they are."""
        return self.measure == "probability" or self.answer_threshold is not None

    @property
    def draws(self) -> bool:
        """Whether random numbers are drawn elsewhere than in the model's dropout layers."""
        return not self.all_of_them and self.measure not in ("answers", "probability")

    def figures(self) -> tuple[str, ...]:
        """Name the figures that a device reports."""
        names = ("uts/looked_at", "uts/sent", "uts/uncertainty", "uts/uncertainty_sent")
        return names if self.answer_threshold is None else (*names, "uts/uncertain_samples")

    def passes_per_sample(self, tokens: int) -> dict[str, int]:
        """Return how often a device runs its encoders and its language model to choose.

        Generating an answer counts as one pass. The encoders' pass that yields the tokens counts.

        Args:
            tokens: Number of tokens of a sample.
        """
        encoder, language = 1, 0
        if not self.all_of_them:
            answers, reads = self.measure == "answers", self.reads
            encoder += self.passes * (self.measure == "features")
            language += (answers or reads) + reads + self.passes * (tokens + 1) * answers
        return {"encoder_passes": encoder, "language_model_passes": language}

    def look_through(self, edge: EdgeLearner, batches: Iterable[Batch]) -> Looked:
        """Return what `look` does of all batches."""
        if self.draws:
            return Looked.joined(edge.map(batches, self.look))
        tokens = sum(edge.module.tower().connector.tokens.values())
        wide = 1 + tokens * (self.measure == "answers" and not self.all_of_them)
        return Looked.joined(edge.map_parts(batches, self.look_at_each, wide=wide))

    def look_at_each(self, module: EdgeModule, batch: Batch, parts: int) -> list[Looked]:
        """Return what `look` does of each device, whose samples are equally many."""
        return self.look(module, batch, parts=parts).split(parts)

    @torch.no_grad()
    def look(self, module: EdgeModule, batch: Batch, *, parts: int = 1) -> Looked:
        """Return the tokens of a batch with what the choice needs.

        Args:
            module: The device's model.
            batch: The samples.
            parts: Number of devices that the samples belong to, one device's after another's.
        """
        module.eval()
        tokens = tokens_of(module, batch)
        scores = torch.zeros(tokens.present.shape)
        sure = torch.ones(tokens.samples)
        if not self.all_of_them:
            asks = self.measure == "answers" or self.reads
            answers = _answers(module, tokens) if asks else []
            if self.reads:
                sure = _probability(module, tokens, answers)
            if self.measure == "answers":
                scores = token_uncertainty(
                    module,
                    tokens,
                    answers,
                    passes=self.passes,
                    variance_weight=self.variance_weight,
                    parts=parts,
                )
            elif self.measure == "probability":
                scores = (1 - sure).unsqueeze(1).expand(tokens.present.shape)
            elif self.measure == "features":
                scores = self._variance(module, batch)
            else:
                of_sample = torch.rand(tokens.samples, 1).expand(tokens.present.shape)
                whole = self.measure == "random_samples"
                scores = of_sample if whole else torch.rand(tokens.present.shape)
        features = {m: x.cpu() for m, x in tokens.features.items()}
        there = Tokens(features, tokens.present.cpu(), tokens.instructions)
        return Looked(there, scores.cpu(), sure.cpu())

    def choose(self, looked: Looked) -> tuple[Tokens, dict[str, float]]:
        """Return the tokens to send, and the figures; no token if the model is sure of all."""
        tokens, scores = looked.tokens, looked.scores
        among = None if self.answer_threshold is None else looked.sure < self.answer_threshold
        ranked = scores if self.keep == "uncertain" else -scores
        chosen = most_uncertain(ranked, tokens.present, self.token_fraction, among=among)
        sent, there = tokens.only(chosen), scores[tokens.present]
        told = [
            float(tokens.number),
            float(sent.number),
            float(there.mean()),
            float(scores[chosen[:, 0], chosen[:, 1]].mean()) if len(chosen) else 0.0,
        ]
        if among is not None:
            told.append(float(among.sum()))
        return sent, dict(zip(self.figures(), told, strict=True))

    def _variance(self, module: EdgeModule, batch: Batch) -> Tensor:
        """Return (N, columns) the relative variance of each token's features.

        The encoders of this package have no dropout of their own, so their inputs have (our
        choice): a value becomes zero, which is the mean of a standardised one; a letter of a text
        becomes a space.
        """
        inputs, _ = module.sensed(batch)
        scores = []
        with _uncached(module):
            for m, x in inputs.items():
                extractor = module.extractors[m]
                count = int(getattr(extractor, "tokens", 1))
                text, p = module.specs[m].kind == "text", self.feature_dropout
                noisy = [_dropped(x, p, text=text) for _ in range(self.passes)]
                passes = torch.stack([extractor(each) for each in noisy])
                scores.append(relative_variance(passes.view(*passes.shape[:-1], count, -1)))
        return torch.cat(scores, dim=1)


def _dropped(x: Tensor, probability: float, *, text: bool) -> Tensor:
    if not text:
        return nn.functional.dropout(x, probability)
    gone = (torch.rand(x.shape, device=x.device) < probability) & (x > 0)
    return x.masked_fill(gone, ord(" "))


@contextmanager
def _uncached(module: EdgeModule) -> Iterator[None]:
    """Keep the features of dropped inputs out of the caches of pretrained encoders."""
    with ExitStack() as stack:
        for extractor in module.extractors.values():
            if isinstance(extractor, PretrainedExtractor):
                stack.enter_context(extractor.uncached())
        yield


def tokens_of(module: EdgeModule, batch: Batch) -> Tokens:
    """Return the outputs of the extractors for a batch."""
    features, present = module.features(batch)
    connector = module.tower().connector
    columns = connector.token_columns(present)
    there = torch.split(columns, list(connector.tokens.values()), dim=1)
    cut = {
        m: x.float().view(*mask.shape, -1).masked_fill(~mask.unsqueeze(-1), 0.0)
        for (m, x), mask in zip(features.items(), there, strict=True)
    }
    return Tokens(cut, columns, batch.instructions)


def _answers(module: EdgeModule, tokens: Tokens) -> list[str]:
    """Return the model's answers from all tokens of each sample."""
    tower = module.tower()
    prompt = tower.connector(tokens.inputs(), tokens.present)
    return tower.generate(prompt, tokens.instructions)


def _probability(module: EdgeModule, tokens: Tokens, answers: Sequence[str]) -> Tensor:
    """Return (N,) the probability of each answer under the model, the product over its words."""
    tower = module.tower()
    prompt = tower.connector(tokens.inputs(), tokens.present).prompt
    output = tower.backbone(prompt, tokens.instructions, answers)
    return output.probability()  # type: ignore[no-any-return]


@torch.no_grad()
def token_uncertainty(
    module: EdgeModule,
    tokens: Tokens,
    answers: Sequence[str],
    *,
    passes: int,
    variance_weight: float,
    parts: int = 1,
) -> Tensor:
    """Return the uncertainty of each token: entropy plus weighted variance over dropout passes.

    The two measures are those of arXiv 2312.16279; how they are applied is our choice. The model
    reads its own answer again under dropout. The entropy of its mean next-token distributions
    belongs to the sample, and all its tokens share it. To tell the tokens apart, the model also
    reads the answer from each token alone; the variance of its distributions over the passes
    belongs to that token.

    Args:
        module: The device's model; left in evaluation mode.
        tokens: N samples.
        answers: The model's answer to each.
        passes: Number of dropout passes.
        variance_weight: Weight of the variance relative to the entropy.
        parts: Number of devices that the samples belong to, one device's after another's.

    Returns:
        (N, columns of ``tokens.present``); undefined where a token is absent. That of an empty
        answer, where nothing is scored, is the upper bound of both measures: ln V + w with V words.
    """
    module.eval()
    tower = module.tower()
    # Of each device first all samples with all their tokens, then with the first token alone, ...
    many, device = tokens.present.shape[1], tokens.present.device
    whole = tokens.present.view(parts, 1, -1, many)
    alone = torch.eye(many, dtype=torch.bool, device=device).view(1, many, 1, many)
    alone = alone.expand(parts, -1, whole.shape[2], -1)
    present = torch.cat([whole, alone], dim=1).flatten(0, 2)
    rows = torch.arange(tokens.samples, device=device).view(parts, 1, -1)
    rows = rows.expand(-1, many + 1, -1).flatten()
    features = {m: x[rows] for m, x in tokens.inputs().items()}
    text = [[texts[n] for n in rows.tolist()] for texts in (tokens.instructions, answers)]
    module.train()
    try:
        outputs = [tower(features, present, *text) for _ in range(passes)]
    finally:
        module.eval()
    mask, words = outputs[0].labels >= 0, outputs[0].logits.shape[-1]
    probabilities = torch.stack([output.logits.float().softmax(dim=-1) for output in outputs])
    spoken, shape = mask.any(dim=1), (parts, many + 1, -1)
    entropy = predictive_entropy(probabilities.mean(dim=0), mask)
    entropy = torch.where(spoken, entropy, math.log(words)).view(shape)
    variance = torch.where(spoken, dropout_variance(probabilities, mask), 1.0).view(shape)
    scores = entropy[:, :1] + variance_weight * variance[:, 1:]
    return scores.transpose(1, 2).reshape(-1, many)
