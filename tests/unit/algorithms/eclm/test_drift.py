"""A test on gates that finds a drift, and does not find what is not there."""

import pytest
import torch
from scipy.stats import ttest_ind
from torch import Tensor

from mlecs_lightning.algorithms.eclm.drift import GateStatistics, drifted


def gates(number: int, *, shift: float = 0.0, seed: int = 0) -> Tensor:
    logits = torch.randn(number, 2, 3, generator=torch.Generator().manual_seed(seed))
    logits[:, 0, 0] += shift
    return logits.softmax(-1)


def test_statistics_by_hand() -> None:
    two = GateStatistics.of(torch.tensor([[[0.2, 0.8]], [[0.4, 0.6]]]))
    torch.testing.assert_close(two.mean, torch.tensor([[0.3, 0.7]]))
    torch.testing.assert_close(two.deviation, torch.tensor([[0.02, 0.02]]).sqrt())
    assert two.samples == 2
    assert GateStatistics.of(torch.tensor([[[0.2, 0.8]]])).deviation.tolist() == [[0, 0]]


def test_the_same_data_are_no_drift() -> None:
    same = GateStatistics.of(gates(100))
    assert not drifted(same, same, significance=0.999)
    constant = GateStatistics.of(torch.full((10, 2, 3), 1 / 3))
    assert not drifted(constant, constant, significance=0.999)


def test_alarms_without_drift_are_as_rare_as_asked() -> None:
    alarms = [
        drifted(
            GateStatistics.of(gates(80, seed=2 * n)),
            GateStatistics.of(gates(60, seed=2 * n + 1)),
            significance=0.05,
        )
        for n in range(300)
    ]
    assert 0 < sum(alarms) <= 0.07 * 300


def test_a_shift_is_found() -> None:
    found = [
        drifted(
            GateStatistics.of(gates(80, shift=1.5, seed=2 * n)),
            GateStatistics.of(gates(80, seed=2 * n + 1)),
            significance=1e-3,
        )
        for n in range(20)
    ]
    assert all(found)


def test_the_threshold_is_that_of_welch_s_test_over_the_modules() -> None:
    one, other = gates(40, shift=0.4), gates(50, seed=1)
    p = ttest_ind(one.double(), other.double(), equal_var=False).pvalue.min() * 6
    statistics = GateStatistics.of(one), GateStatistics.of(other)
    assert drifted(*statistics, significance=p * 1.01)
    assert not drifted(*statistics, significance=p * 0.99)


@pytest.mark.parametrize("number", [0, 1])
def test_too_few_samples_say_nothing(number: int) -> None:
    before = GateStatistics(torch.zeros(2, 3), torch.zeros(2, 3), number)
    assert not drifted(GateStatistics.of(gates(50)), before, significance=0.5)
