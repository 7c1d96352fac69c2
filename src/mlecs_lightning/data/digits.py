"""The default data set: handwritten digits that scikit-learn ships."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import torch

from mlecs_lightning.data.base import FederatedDataModule, Partition, Pools
from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.errors import FaultList
from mlecs_lightning.extras import Need
from mlecs_lightning.types import ModalitySpec

__all__ = ["Digits"]

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_MODALITIES = {
    "pixels": ModalitySpec("image", (1, 8, 8)),
    "profile": ModalitySpec("vector", (16,)),
    "fourier": ModalitySpec("vector", (40,)),
}
_INSTRUCTION = "describe the digit ."


def _sentence(digit: str, weight: str, half: str) -> str:
    return f"a {weight} {digit} with more ink {half} ."


def _standardise(features: np.ndarray, public: np.ndarray) -> torch.Tensor:
    """Standardise with mean and deviation of the public rows, which everyone may know.

    The deviation of a column is at least a tenth of the mean deviation (our choice): otherwise a
    column that is nearly constant in the public rows would have huge values in the others.
    """
    mean, deviation = features[public].mean(0), features[public].std(0)
    return torch.from_numpy(
        (features - mean) / np.maximum(deviation, 0.1 * deviation.mean())
    ).float()


class Digits(FederatedDataModule):
    """The 1,797 handwritten digits in scikit-learn (UCI optical digits, test part, 43 writers).

    Each image gives three modalities: ``pixels`` (1, 8, 8); ``profile`` (16,), the ink of each row
    and column; ``fourier`` (40,), the magnitudes of the 2-D spectrum, which do not say where the
    ink is. The target is a sentence that names the digit, whether it is bold or light (compared
    with the median of the samples outside the test pool), and whether it has more ink above or
    below. ``bold`` and ``light`` are also the two domains, for partition by domain.
    """

    def __init__(
        self,
        *,
        public_fraction: float = 0.25,
        test_fraction: float = 0.2,
        partition: Partition = "dirichlet",
        **kwargs: Any,
    ) -> None:
        """Set the size of the pools.

        Args:
            public_fraction: Fraction of the samples that the server holds.
            test_fraction: Fraction of the samples that is held out for testing.
            partition: As in `FederatedDataModule`; ``dirichlet`` by default.
            **kwargs: See `FederatedDataModule`.

        Raises:
            ValueError: If no private samples would be left, or a value is out of range.
        """
        faults = FaultList()
        with faults.collecting():
            super().__init__(partition=partition, **kwargs)
        if not (public_fraction > 0 and test_fraction > 0 and public_fraction + test_fraction < 1):
            faults.append(
                "data.init_args.public_fraction and test_fraction must be positive and leave "
                f"private samples, got {public_fraction} and {test_fraction}"
            )
        faults.raise_any()
        self.modalities = _MODALITIES
        self.classes = _WORDS
        self.public_fraction = public_fraction
        self.test_fraction = test_fraction

    def needs(self) -> tuple[Need, ...]:
        """Name the package that holds the digits."""
        return (Need("data: Digits", "digits"),)

    def load_pools(self) -> Pools:
        """Load the digits and split them into pools, stratified by digit."""
        # Imported here: 50 MiB, with pandas, that only this data set needs.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        source = load_digits()
        images = (source.images / 16.0).astype(np.float32)
        labels = source.target.astype(np.int64)
        rows = np.arange(len(labels))
        rest, test = train_test_split(
            rows, test_size=self.test_fraction, stratify=labels, random_state=self.seed
        )
        share = self.public_fraction / (1.0 - self.test_fraction)
        private, public = train_test_split(
            rest, test_size=share, stratify=labels[rest], random_state=self.seed
        )
        ink = images.sum(axis=(1, 2))
        weight = np.where(ink > np.median(ink[rest]), "bold", "light")
        half = np.where(images[:, :4].sum((1, 2)) > images[:, 4:].sum((1, 2)), "above", "below")
        ids = tuple(f"digit-{i:04d}" for i in rows)
        table = SampleTable(
            ids=ids,
            modalities=tuple(self.modalities),
            inputs={
                "pixels": torch.from_numpy(images[:, None]),
                "profile": _standardise(
                    np.concatenate([images.sum(2), images.sum(1)], axis=1), public
                ),
                "fourier": _standardise(
                    np.abs(np.fft.rfft2(images)).reshape(len(images), -1), public
                ),
            },
            present=torch.ones(len(rows), len(self.modalities), dtype=torch.bool),
            instructions=(_INSTRUCTION,) * len(rows),
            targets=tuple(
                _sentence(_WORDS[y], w, h) for y, w, h in zip(labels, weight, half, strict=True)
            ),
            labels=torch.from_numpy(labels),
            domains=tuple(weight.tolist()),
            groups=ids,
        )
        return Pools(*(table.select(np.sort(part)) for part in (public, private, test)))

    def read_label(self, text: str) -> int | None:
        """Return the digit that the text names, ``None`` if it names none or several."""
        named = {word for word in re.findall(r"[a-z]+", text.lower()) if word in _WORDS}
        return _WORDS.index(named.pop()) if len(named) == 1 else None

    def pretraining_pairs(self) -> list[tuple[str, str]]:
        """Return all forty sentences, each with its three key words in every order."""
        facts = itertools.product(_WORDS, ("bold", "light"), ("above", "below"))
        return [
            (" ".join(keys), _sentence(*fact))
            for fact in facts
            for keys in itertools.permutations(fact)
        ]
