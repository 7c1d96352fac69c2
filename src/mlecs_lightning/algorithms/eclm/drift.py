"""Drift detection from the distribution of a device's gates (ECLM)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

__all__ = ["GateStatistics", "drifted"]


class GateStatistics(NamedTuple):
    """Mean and standard deviation of the gates over a device's samples.

    Attributes:
        mean: (L, K).
        deviation: (L, K) standard deviation, with Bessel's correction.
        samples: Number of samples.
    """

    mean: Tensor
    deviation: Tensor
    samples: int

    @classmethod
    def of(cls, gates: Tensor) -> GateStatistics:
        """Compute them from gates (N, L, K); the deviation of a single sample is zero."""
        spread = gates.std(dim=0, correction=1) if len(gates) > 1 else gates[0] * 0
        return cls(gates.mean(dim=0), spread, len(gates))


def drifted(now: GateStatistics, before: GateStatistics, *, significance: float) -> bool:
    """Return whether the distribution of the gates has changed.

    Welch's t-test of each module's mean gate, with Bonferroni correction (our choice: the device
    stores two numbers for each module and none of its old samples).

    Args:
        now: The gates on the present data.
        before: The gates on the data for which the sub-model was derived.
        significance: Largest probability of a false alarm, for independent samples.
    """
    if min(now.samples, before.samples) < 2:
        return False
    from scipy.stats import ttest_ind_from_stats  # of the extra `eclm`

    with np.errstate(divide="ignore", invalid="ignore"):
        tested = ttest_ind_from_stats(
            *(now.mean.double().numpy(), now.deviation.double().numpy(), now.samples),
            *(before.mean.double().numpy(), before.deviation.double().numpy(), before.samples),
            equal_var=False,
        )
    # Equal means without any spread give NaN, which is no drift.
    p = np.nan_to_num(tested.pvalue, nan=1.0)
    return bool(p.min() * p.size < significance)
