"""Class labels read back from generated text, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import regex
import torch
from torch import Tensor
from torchmetrics import Metric

from mlecs_lightning.metrics.words import normalise, whole_words

__all__ = ["LabelReader", "LabelScores", "keyword_label_reader"]

LabelReader = Callable[[str], int | None]
"""Reads the class index out of a text; ``None`` where the text names no class, or more than one."""


def keyword_label_reader(keywords: Mapping[str, Sequence[str]]) -> LabelReader:
    """Build a reader that looks for each class's key phrases in the text.

    Whole words only, both normalised, so that letter case and whitespace do not matter; in a script
    without blanks, which shows no words, anywhere. Of phrases that overlap the one that begins
    first counts, and of these the longest, so that "not lying" is not also read as "lying".

    Args:
        keywords: For each class, in the order of the class indices, the phrases that name it.

    Returns:
        A reader, which can be pickled: the index of the class whose phrases occur, ``None`` if none
        does or those of two classes do.

    Raises:
        ValueError: If a class has no phrase, a phrase is blank, or two classes share one.

    Example:
        >>> read = keyword_label_reader({"upright": ["standing", "walking"], "lying": ["lying"]})
        >>> read("The person is lying on the floor."), read("Standing, then lying."), read("?")
        (1, None, None)
    """
    class_of: dict[str, int] = {}
    for index, (name, phrases) in enumerate(keywords.items()):
        if not phrases or not all(map(normalise, phrases)):
            raise ValueError(
                f"class {name!r} needs at least one phrase and no blank one: {phrases}"
            )
        for phrase in map(normalise, phrases):
            if class_of.setdefault(phrase, index) != index:
                raise ValueError(
                    f"{phrase!r} names both {list(keywords)[class_of[phrase]]!r} and {name!r}"
                )
    longest_first = sorted(class_of, key=len, reverse=True)
    return partial(_read_keyword, whole_words(longest_first), class_of)


class LabelScores(Metric):
    """Accuracy and macro-F1 of the classes named in generated text, in 0..1.

    A prediction that the reader cannot read is wrong: it lowers the recall of its true class and is
    no class of its own.

    Macro-F1 is the mean over the classes that occur among the targets, which is scikit-learn's
    ``f1_score`` with ``labels`` set to them. [our choice: one client's own domain may lack a class.
    Over the union with the predicted classes, scikit-learn's default, a single stray prediction
    would add a class of F1 0 to the mean; here it costs its true class recall, no more.]

    Args:
        reader: Reads the class index out of a prediction or a target.
        num_classes: C, the number of classes.
        **kwargs: Of `torchmetrics.Metric`, such as ``sync_on_compute``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    confusion: Tensor

    def __init__(self, reader: LabelReader, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reader = reader
        self.num_classes = num_classes
        # Rows: the true class. Columns: the predicted class, the last one for unreadable texts.
        empty = torch.zeros(num_classes, num_classes + 1, dtype=torch.long)
        self.add_state("confusion", default=empty, dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], targets: Sequence[str]) -> None:
        """Add a batch.

        Args:
            predictions: The generated texts.
            targets: For each prediction the true text, which must name one class.

        Raises:
            ValueError: If there are not as many targets as predictions, the reader finds no class
                in a target, or returns an index outside 0..C-1.
        """
        if len(predictions) != len(targets):
            raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets")
        labels = {text: self._read(text) for text in {*predictions, *targets}}
        columns = self.num_classes + 1
        cells = [
            labels[target] * columns + labels[prediction]
            for prediction, target in zip(predictions, targets, strict=True)
        ]
        if unreadable := [target for target in targets if labels[target] == self.num_classes]:
            raise ValueError(f"the label reader finds no class in the target {unreadable[0]!r}")
        counts = torch.bincount(
            torch.tensor(cells, dtype=torch.long), minlength=self.confusion.numel()
        )
        # Not in place: a state reset under `torch.inference_mode` could not be updated outside it.
        self.confusion = self.confusion + counts.view_as(self.confusion).to(self.confusion.device)

    def compute(self) -> dict[str, Tensor]:
        """Return ``accuracy`` and ``macro_f1``, float32 scalars in 0..1; NaN without samples."""
        hits = self.confusion.diagonal()
        support = self.confusion.sum(dim=1)
        predicted = self.confusion[:, :-1].sum(dim=0)
        f1 = 2 * hits / (support + predicted)
        return {"accuracy": hits.sum() / support.sum(), "macro_f1": f1[support > 0].mean()}

    def _read(self, text: str) -> int:
        """Return the column of a text."""
        label = self.reader(text)
        if label is None:
            return self.num_classes
        if not 0 <= label < self.num_classes:
            raise ValueError(
                f"the label reader returned {label} for {text!r}, "
                f"expected 0..{self.num_classes - 1} or None"
            )
        return label


def _read_keyword(
    pattern: regex.Pattern[str], class_of: Mapping[str, int], text: str
) -> int | None:
    named = {class_of[phrase] for phrase in pattern.findall(normalise(text))}
    return named.pop() if len(named) == 1 else None
