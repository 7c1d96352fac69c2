"""The privacy loss of a run, round by round, with the accountant of Opacus."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.rounds.privacy import Privacy

__all__ = ["Accountant", "epsilon_of"]

_ORDERS = [1 + k / 10 for k in range(1, 100)] + [
    *range(11, 64),
    64,
    80,
    96,
    128,
    192,
    256,
    384,
    512,
]
"""Orders of the Renyi divergence. Opacus's defaults end at 63, which makes epsilons below 0.2
needlessly large; any order gives an upper bound."""


@cache
def _divergences(rate: float, noise_multiplier: float) -> tuple[float, ...]:
    from opacus.accountants.analysis.rdp import compute_rdp

    found = compute_rdp(q=rate, noise_multiplier=noise_multiplier, steps=1, orders=_ORDERS)
    return tuple(map(float, found))


def epsilon_of(mechanisms: Iterable[tuple[float, float, int]], *, delta: float) -> float:
    """Return the epsilon of Poisson-sampled Gaussian mechanisms, one after another.

    By Renyi divergences (arXiv 1908.10530) and their conversion (arXiv 1905.09982, Theorem 21), as
    Opacus has them.

    Args:
        mechanisms: Sampling rate in (0, 1], noise multiplier and number of rounds of each.
        delta: The delta.

    Returns:
        Epsilon; 0 without rounds.
    """
    from opacus.accountants.analysis.rdp import get_privacy_spent

    total = [0.0] * len(_ORDERS)
    for rate, noise_multiplier, rounds in mechanisms:
        if rounds:
            each = _divergences(rate, noise_multiplier)
            total = [sum_ + rounds * one for sum_, one in zip(total, each, strict=True)]
    if not any(total):
        return 0.0
    with warnings.catch_warnings():
        # "Optimal order is the largest alpha": the bound is valid, another order might be lower.
        warnings.simplefilter("ignore", UserWarning)
        epsilon, _ = get_privacy_spent(orders=_ORDERS, rdp=total, delta=delta)
    return max(0.0, float(epsilon))


class Accountant:
    """Adds up the privacy loss of a run.

    With the noise on the server, a round is a Gaussian mechanism on a Poisson sample of the
    clients. A group of clients with a sum of its own adds nothing: a client is in one group.

    With the noise on the devices, the number of devices decides how much of it there is, and the
    server sees who takes part. So nothing is gained by sampling, and the loss is counted client by
    client, from the rounds that each took part in: Gaussian mechanisms one after another, whose
    1 / noise_multiplier^2 add up. The epsilons are those of the client that lost most.
    """

    def __init__(self, privacy: Privacy, rate: float, groups: Iterable[Iterable[str]]) -> None:
        """Start before the first round.

        Args:
            privacy: The settings.
            rate: Probability q that a client takes part in a round.
            groups: Clients whose updates are added to one another.
        """
        self.privacy, self.rate = privacy, rate
        self._group = {name: tuple(group) for group in map(tuple, groups) for name in group}
        self._rounds: Counter[tuple[float, float]] = Counter()
        self._lost: dict[str, float] = {}
        self._shown: dict[str, float] = {}

    def expected(self, client: str) -> float:
        """Return the expected number of participants in a client's group."""
        return self.rate * len(self._group[client])

    def add_round(self, asked: Iterable[str], summed: Iterable[str]) -> None:
        """Count a round.

        Args:
            asked: The clients that took part. With the noise on the devices each may have shown
                the server an update.
            summed: Those of them whose updates are in the sums.
        """
        privacy = self.privacy
        if privacy.where == "server":
            self._rounds[self.rate, privacy.noise_multiplier] += 1
            return
        together = set(summed)
        for client in asked:
            alone = self.expected(client) / privacy.noise_multiplier**2
            self._shown[client] = self._shown.get(client, 0.0) + alone
            if client in together:
                shares = len(together.intersection(self._group[client]))
                self._lost[client] = self._lost.get(client, 0.0) + alone / shares

    def figures(self) -> dict[str, float]:
        """Return the epsilons after the rounds so far, under their names in the log."""
        if self.privacy.where == "server":
            rounds = [(*mechanism, n) for mechanism, n in self._rounds.items()]
            return {"privacy/epsilon": epsilon_of(rounds, delta=self.privacy.delta)}
        return {
            "privacy/epsilon": self._epsilon(self._lost),
            "privacy/epsilon_server": self._epsilon(self._shown),
        }

    def _epsilon(self, losses: Mapping[str, float]) -> float:
        worst = max(losses.values(), default=0.0)
        alone = [(1.0, 1 / math.sqrt(worst), 1)] if worst else []
        return epsilon_of(alone, delta=self.privacy.delta)

    def summary(self) -> dict[str, Any]:
        """Return what summary.json says of the privacy of a run."""
        epsilons = {name.partition("/")[2]: value for name, value in self.figures().items()}
        return {
            **epsilons,
            "delta": self.privacy.delta,
            "clip": self.privacy.clip,
            "noise_multiplier": self.privacy.noise_multiplier,
            "sampling_rate": self.rate,
            "where": self.privacy.where,
            "secure_noise": self.privacy.secure_noise,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {
            "rounds": [[*mechanism, n] for mechanism, n in self._rounds.items()],
            "lost": dict(self._lost),
            "shown": dict(self._shown),
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ConfigurationError: If the rounds so far were without privacy.
        """
        if state is None:
            raise ConfigurationError(
                "ckpt_path: the rounds of the checkpoint were trained without trainer.privacy, and "
                "no noise that is added now protects them; start again, or leave trainer.privacy "
                "out"
            )
        self._rounds = Counter({(rate, noise): n for rate, noise, n in state["rounds"]})
        self._lost, self._shown = dict(state["lost"]), dict(state["shown"])
