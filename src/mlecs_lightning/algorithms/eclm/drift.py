"""Have a device's data changed? A test on the distribution of its gates (ECLM)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import ttest_ind_from_stats
from torch import Tensor

__all__ = ["GateStatistics", "drifted"]


class GateStatistics(NamedTuple):
    """Mean and spread of the gates over a device's samples.

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
        """Take them of gates (N, L, K); of a single sample the deviation is zero."""
        spread = gates.std(dim=0, correction=1) if len(gates) > 1 else gates[0] * 0
        return cls(gates.mean(dim=0), spread, len(gates))


def drifted(now: GateStatistics, before: GateStatistics, *, significance: float) -> bool:
    """Return whether the gates come from another distribution than before.

    Welch's t-test of each module's mean gate, with Bonferroni's correction for their number
    (our choice: the device keeps two numbers for each module and none of its old samples).

    Args:
        now: On the present data.
        before: On the data for which the sub-model was derived.
        significance: Largest probability of an alarm without drift, if samples were independent.
    """
    if min(now.samples, before.samples) < 2:
        return False
    with np.errstate(divide="ignore", invalid="ignore"):
        tested = ttest_ind_from_stats(
            *(now.mean.double().numpy(), now.deviation.double().numpy(), now.samples),
            *(before.mean.double().numpy(), before.deviation.double().numpy(), before.samples),
            equal_var=False,
        )
    # No difference without any spread gives no number, and is no drift.
    p = np.nan_to_num(tested.pvalue, nan=1.0)
    return bool(p.min() * p.size < significance)
