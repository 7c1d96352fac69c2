"""The scores of a model's generated text, and the row of the best constant answer beside them."""

from __future__ import annotations

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
    """All scores of generated text, under the names that the reports use.

    ``update(predictions, targets)`` takes two sequences of texts. `compute` returns ``rouge_lsum``
    and ``exact_match``, with a label reader also ``accuracy`` and ``macro_f1``, and with a
    BERTScore also ``bertscore``; a score that no target counts for is left out. Where a target is a
    `ReferencedText` the best of its references counts, the label is that of the target itself, and
    ``rouge_lsum_mean`` (``bertscore_mean``) is there as well: the mean over the references.

    Args:
        reader: Reads the class index out of a text; ``None`` for free text without classes.
        num_classes: The number of classes, needed with ``reader``.
        bertscore: A template, whose settings are taken and whose state is left alone.
        sync_on_compute: Whether `compute` adds up the states of all processes. True for a model
            that all processes evaluate together, each on its part of the data. False for a client,
            which lives in one process: the others never reach its `compute`, and it would hang.

    Raises:
        ValueError: If only one of ``reader`` and ``num_classes`` is given.
    """

    def __init__(
        self,
        reader: LabelReader | None = None,
        num_classes: int | None = None,
        *,
        bertscore: BertScore | None = None,
        sync_on_compute: bool = True,
    ) -> None:
        # Of the constructor, not set later: torchmetrics reads the flag only there.
        sync: dict[str, Any] = {"sync_on_compute": sync_on_compute}
        metrics: dict[str, Metric | MetricCollection] = {
            "rouge_lsum": RougeLsum(**sync),
            "rouge_lsum_mean": RougeLsum(over="mean", **sync),
            "exact_match": ExactMatch(**sync),
        }
        if reader is not None and num_classes is not None:
            metrics["labels"] = LabelScores(reader, num_classes, **sync)
        elif reader is not None or num_classes is not None:
            raise ValueError("accuracy and macro_f1 need both `reader` and `num_classes`")
        if bertscore is not None:
            like = (bertscore.model, bertscore.num_layers)
            metrics["bertscore"] = BertScore(*like, **sync)
            metrics["bertscore_mean"] = BertScore(*like, over="mean", **sync)
        # Compute groups share one state among metrics whose states agree after the first batch: a
        # first batch without errors would make ROUGE-Lsum a copy of the exact match.
        super().__init__(metrics, compute_groups=False)
        self._build = partial(TextMetrics, reader, num_classes, bertscore=bertscore)

    def local(self) -> TextMetrics:
        """Return an empty collection of the same metrics, for this process alone."""
        return self._build(sync_on_compute=False).to(self["rouge_lsum"].device)

    def compute(self) -> dict[str, float]:
        """Return the scores by name, in 0..1, without those that no target counts for.

        A NaN would reach means and files, where it is no JSON.
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
    """Score the best answer that ignores its input: the row to show beside every result.

    Each metric takes the constant sentence that suits it best on the test targets, so the row is
    what a model can reach without looking. That is much where targets share a template: with two
    of seven words varying, a constant sentence reaches a ROUGE-Lsum of 0.8.

    Args:
        train_targets: The targets of the training data, where the sentences come from.
        test_targets: The targets to score against.
        metrics: Says which metrics; its own state is left alone.
        candidates: How many of the most frequent distinct training targets to try.

    Returns:
        The names of ``metrics.compute()``, each with the score of its best candidate.

    Raises:
        ValueError: If there are no training targets or no test targets.
    """
    if not train_targets or not test_targets:
        raise ValueError(
            f"a constant row needs targets, got {len(train_targets)} for training and "
            f"{len(test_targets)} for testing"
        )
    sentences = [sentence for sentence, _ in Counter(train_targets).most_common(candidates)]
    scratch = metrics.local()  # whichever process calls this has all the targets
    # One pass over the distinct pairs fills the metrics' caches: BERTScore then embeds a target
    # once rather than once for each candidate.
    distinct = list(dict.fromkeys(test_targets))
    scratch.update(
        [sentence for sentence in sentences for _ in distinct], distinct * len(sentences)
    )
    rows = []
    for sentence in sentences:
        scratch.reset()
        scratch.update([sentence] * len(test_targets), test_targets)
        rows.append(scratch.compute())
    return {name: max(row[name] for row in rows) for name in rows[0]}
