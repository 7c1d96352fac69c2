import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlecs_lightning.algorithms.cdcca.uncertainty import (
    dropout_variance,
    most_uncertain,
    predictive_entropy,
    relative_variance,
)


def test_entropy_by_hand() -> None:
    """Two positions of the first sample count, one of the second, none of the third."""
    fair, sure, skewed = [0.25] * 4, [0.0, 1.0, 0.0, 0.0], [0.5, 0.25, 0.25, 0.0]
    probabilities = torch.tensor([[fair, sure], [skewed, fair], [fair, fair]])
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    expected = [math.log(4) / 2, 1.5 * math.log(2), 0]
    assert predictive_entropy(probabilities, mask).tolist() == pytest.approx(expected)


def test_variance_by_hand() -> None:
    """Passes (1, 0), (0, 1), (1, 0): 2/3 * 1/3 for each of the two words."""
    passes = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]], [[[1.0, 0.0]]]])
    assert dropout_variance(passes, torch.tensor([[True]])).tolist() == pytest.approx([4 / 9])
    same = passes[:1].expand(5, -1, -1, -1)
    assert dropout_variance(same, torch.tensor([[True]])).tolist() == [0]


def test_relative_variance_by_hand() -> None:
    """Of (2, 0) and (0, 2): mean (1, 1), spread 2, mean squared length 4."""
    passes = torch.tensor([[[2.0, 0.0], [5.0, 5.0]], [[0.0, 2.0], [5.0, 5.0]]])
    assert relative_variance(passes).tolist() == [0.5, 0.0]
    torch.testing.assert_close(relative_variance(1000 * passes), relative_variance(passes))
    assert relative_variance(torch.zeros(3, 4, 2)).tolist() == [0.0] * 4


def test_selection_by_hand() -> None:
    scores = torch.tensor([[0.3, 9.0, 0.2], [0.5, 0.4, 0.1], [0.6, 0.5, 0.5]])
    present = torch.tensor([[True, False, True], [True, True, True], [True, True, True]])
    chosen = most_uncertain(scores, present, 0.5)  # four of eight; 9.0 is not there
    assert chosen.tolist() == [[1, 0], [2, 0], [2, 1], [2, 2]]
    assert most_uncertain(scores, present, 0.01).tolist() == [[2, 0]]
    assert len(most_uncertain(scores, present, 1.0)) == 8
    nobody = torch.zeros_like(present)
    assert most_uncertain(scores, nobody, 0.5).shape == (0, 2)


@given(st.integers(1, 12), st.integers(1, 4), st.floats(0.01, 1.0), st.integers(0, 99))
def test_no_token_that_stays_is_less_sure_than_one_that_goes(
    samples: int, tokens: int, fraction: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 5, (samples, tokens), generator=generator).float()
    present = torch.rand(samples, tokens, generator=generator) < 0.7
    chosen = most_uncertain(scores, present, fraction)
    goes = torch.zeros_like(present)
    goes[chosen[:, 0], chosen[:, 1]] = True
    there = int(present.sum())
    assert len(chosen) == int(goes.sum()) == min(there, max(1, int(fraction * there + 0.5)))
    assert not (goes & ~present).any()
    stays = present & ~goes
    if stays.any():
        assert scores[stays].max() <= scores[goes].min()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scores \(2, 3\), present \(2, 2\)"):
        most_uncertain(torch.zeros(2, 3), torch.ones(2, 2, dtype=torch.bool), 0.5)
    for fraction in (0.0, 1.1):
        with pytest.raises(ValueError, match="fraction must lie in"):
            most_uncertain(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), fraction)
