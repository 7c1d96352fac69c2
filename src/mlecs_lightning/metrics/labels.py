"""Class labels read from generated text, and their accuracy and macro-F1."""

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
"""Returns the index of the class that a text names; ``None`` if it names none or several."""


def keyword_label_reader(keywords: Mapping[str, Sequence[str]]) -> LabelReader:
    """Build a reader that searches a text for the key phrases of each class.

    Text and phrases are normalised, so that letter case and whitespace do not matter. Phrases match
    whole words only, or anywhere in scripts without blanks between words. Of overlapping phrases
    the one that begins first counts, and of those the longest, so that "not lying" is not also read
    as "lying".

    Args:
        keywords: The phrases that name each class, in the order of the class indices.

    Returns:
        A reader, which can be pickled. It returns the index of the class whose phrases occur, and
        ``None`` if no phrases or those of several classes occur.

    Raises:
        ValueError: If a class has no phrase, a phrase is blank, or two classes share a phrase.

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
    """Accuracy and macro-F1 of the classes named in generated text, in [0, 1].

    A prediction without a readable class is wrong: it lowers the recall of its true class, but is
    not a class of its own.

    Macro-F1 is the mean over the classes that occur in the targets, which is scikit-learn's
    ``f1_score`` with ``labels`` set to them. Our choice, because a client's own domain may lack a
    class. scikit-learn's default also includes all predicted classes: then a single stray
    prediction would add a class with F1 0 to the mean, whereas here it only lowers the recall of
    its true class.

    Args:
        reader: Reads the class index from a prediction or a target.
        num_classes: Number of classes C.
        **kwargs: Arguments of `torchmetrics.Metric`, such as ``sync_on_compute``.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    confusion: Tensor

    def __init__(self, reader: LabelReader, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reader = reader
        self.num_classes = num_classes
        # Rows are true classes, columns predicted classes; the last column is for unreadable texts.
        empty = torch.zeros(num_classes, num_classes + 1, dtype=torch.long)
        self.add_state("confusion", default=empty, dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], targets: Sequence[str]) -> None:
        """Add a batch.

        Args:
            predictions: The generated texts.
            targets: The true text of each prediction; each must name one class.

        Raises:
            ValueError: If there are not as many targets as predictions, the reader finds no class
                in a target, or it returns an index outside 0..C-1.
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
        # Not in place, because a state reset in `torch.inference_mode` cannot be changed outside.
        self.confusion = self.confusion + counts.view_as(self.confusion).to(self.confusion.device)

    def compute(self) -> dict[str, Tensor]:
        """Return ``accuracy`` and ``macro_f1``, float32 scalars in [0, 1]; NaN without samples."""
        hits = self.confusion.diagonal()
        support = self.confusion.sum(dim=1)
        predicted = self.confusion[:, :-1].sum(dim=0)
        f1 = 2 * hits / (support + predicted)
        return {"accuracy": hits.sum() / support.sum(), "macro_f1": f1[support > 0].mean()}

    def _read(self, text: str) -> int:
        """Return the column of a text in the confusion matrix."""
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
