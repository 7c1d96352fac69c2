"""All metrics of a model's answers, and those of the best constant answer for comparison."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from torchmetrics import Metric, MetricCollection

from mlecs_lightning.metrics.labels import LabelReader, LabelScores
from mlecs_lightning.metrics.text import BertScore, ExactMatch, RougeLsum

__all__ = ["TextMetrics", "constant_row"]


class TextMetrics(MetricCollection):
    """All metrics of generated text, under the names that the reports use.

    ``update(predictions, targets)`` takes two sequences of texts. `compute` returns ``exact_match``
    and, unless it is left out, ``rouge_lsum``; with a label reader also ``accuracy`` and
    ``macro_f1``; with a BERTScore also ``bertscore``. Metrics without a scored target are left out.
    If a target is a `ReferencedText`, its best reference counts, the label is that of the target
    itself, and
    ``rouge_lsum_mean`` (and ``bertscore_mean``) is the mean over the references.

    Args:
        reader: Reads the class index from a text; ``None`` for free text without classes.
        num_classes: Number of classes, required with ``reader``.
        rouge: Whether to compute ROUGE-Lsum.
        bertscore: A `BertScore` whose settings are used, but not its state.
        sync_on_compute: Whether `compute` sums the states of all processes. Use True for a model
            that all processes evaluate together, each on a part of the data, and False for a
            client, which runs in one process: `compute` would wait for the others forever.

    Raises:
        MissingExtraError: If rouge-score is not installed, but asked for.
        ValueError: If only one of ``reader`` and ``num_classes`` is given.
    """

    def __init__(
        self,
        reader: LabelReader | None = None,
        num_classes: int | None = None,
        *,
        rouge: bool = True,
        bertscore: BertScore | None = None,
        sync_on_compute: bool = True,
    ) -> None:
        # An argument of the constructors, because torchmetrics reads the flag only there.
        sync: dict[str, Any] = {"sync_on_compute": sync_on_compute}
        metrics: dict[str, Metric | MetricCollection] = {}
        if rouge:
            metrics["rouge_lsum"] = RougeLsum(**sync)
            metrics["rouge_lsum_mean"] = RougeLsum(over="mean", **sync)
        metrics["exact_match"] = ExactMatch(**sync)
        if reader is not None and num_classes is not None:
            metrics["labels"] = LabelScores(reader, num_classes, **sync)
        elif reader is not None or num_classes is not None:
            raise ValueError("accuracy and macro_f1 need both `reader` and `num_classes`")
        if bertscore is not None:
            like = (bertscore.model, bertscore.num_layers)
            metrics["bertscore"] = BertScore(*like, **sync)
            metrics["bertscore_mean"] = BertScore(*like, over="mean", **sync)
        # Compute groups would merge metrics whose states are equal after the first batch: after a
        # batch without errors, ROUGE-Lsum would become a copy of exact match.
        super().__init__(metrics, compute_groups=False)
        self._build = partial(TextMetrics, reader, num_classes, rouge=rouge, bertscore=bertscore)

    def local(self) -> TextMetrics:
        """Return an empty collection of the same metrics, for this process only."""
        return self._build(sync_on_compute=False).to(self["exact_match"].device)

    def compute(self) -> dict[str, float]:
        """Return the scores by name, in [0, 1], without metrics that have scored no target.

        Those would be NaN, which must not get into means, nor into files, as it is not JSON.
        """
        values = {name: float(value) for name, value in super().compute().items()}
        return {name: value for name, value in values.items() if not math.isnan(value)}


def constant_row(
    train_targets: Sequence[str],
    test_targets: Sequence[str],
    metrics: TextMetrics,
    *,
    candidates: int = 32,
) -> dict[str, float]:
    """Score the best constant answer, a baseline to compare every result with.

    For each metric, the best constant sentence on the test targets is chosen, so this is what a
    model can reach without its inputs. That is a lot if targets share a template: if two of seven
    words vary, a constant sentence reaches a ROUGE-Lsum of 0.8.

    Args:
        train_targets: The training targets, from which the sentences are taken.
        test_targets: The targets to score against.
        metrics: The metrics to use; their state is not changed.
        candidates: Number of the most frequent distinct training targets to try.

    Returns:
        The names of ``metrics.compute()`` with the score of the best candidate for each.

    Raises:
        ValueError: If there are no training targets or no test targets.
    """
    if not train_targets or not test_targets:
        raise ValueError(
            f"a constant row needs targets, got {len(train_targets)} for training and "
            f"{len(test_targets)} for testing"
        )
    sentences = [sentence for sentence, _ in Counter(train_targets).most_common(candidates)]
    scratch = metrics.local()  # the calling process has all targets
    # A pass over all distinct pairs fills the metrics' caches: BERTScore then embeds a target once,
    # and not once for each candidate.
    distinct = list(dict.fromkeys(test_targets))
    pairs = list(itertools.product(sentences, distinct))
    scratch.update([sentence for sentence, _ in pairs], [target for _, target in pairs])
    rows = []
    for sentence in sentences:
        scratch.reset()
        scratch.update([sentence] * len(test_targets), test_targets)
        rows.append(scratch.compute())
    best = dict(rows[0])
    for row in rows[1:]:
        for name, score in row.items():
            best[name] = max(best[name], score)
    return best
