"""Who takes part under differential privacy, and what a round costs."""

import math
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
from opacus.accountants import RDPAccountant
from scipy.integrate import trapezoid
from scipy.stats import norm

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.rounds import Privacy, accounting
from mlecs_lightning.rounds.accounting import Accountant, epsilon_of
from mlecs_lightning.rounds.participation import LoopSettings, Participation
from mlecs_lightning.rounds.privacy import poisson_clients

NAMES = tuple("abcdefgh")
ROUNDS = 2000


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"clip": 0.0}, "clip must be positive and finite, got 0.0"),
        ({"clip": math.inf}, "clip must be positive and finite, got inf"),
        ({"noise_multiplier": -1.0}, "noise_multiplier must be positive and finite, got -1.0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier must be positive and finite, got nan"),
        ({"delta": 0.0}, r"delta must lie in \(0, 1\), got 0.0"),
        ({"delta": 1.0}, r"delta must lie in \(0, 1\), got 1.0"),
    ],
)
def test_a_value_out_of_range_is_named(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^trainer\.privacy\.{said}$"):
        Privacy(**{"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5, **wrong})


# Participants -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", [3, None])
def test_each_client_is_drawn_alone(rate: float, seed: int | None) -> None:
    """Frequencies of clients, pairs and numbers, each within ten standard errors."""
    drawn = [poisson_clients(NAMES, rate, seed=seed, round=r) for r in range(ROUNDS)]
    took = np.array([[name in each for name in NAMES] for each in drawn], dtype=float)
    error = 10 * math.sqrt(rate * (1 - rate) / ROUNDS)
    assert np.abs(took.mean(0) - rate).max() < error
    for one, other in combinations(range(len(NAMES)), 2):
        together = (took[:, one] * took[:, other]).mean()
        spread = math.sqrt(rate**2 * (1 - rate**2) / ROUNDS)
        assert abs(together - rate**2) < 10 * spread, (one, other)
    for count in range(len(NAMES) + 1):  # a sample of fixed size would have one count alone
        share = math.comb(len(NAMES), count) * rate**count * (1 - rate) ** (len(NAMES) - count)
        seen = float((took.sum(1) == count).mean())
        assert abs(seen - share) < 10 * math.sqrt(share * (1 - share) / ROUNDS), count
    assert all(list(each) == sorted(each) for each in drawn)


def test_a_rate_of_one_draws_everybody() -> None:
    assert {poisson_clients(NAMES, 1.0, seed=s, round=0) for s in (None, 0, 1)} == {NAMES}


def test_seeded_participants_are_a_function_of_seed_and_round() -> None:
    def drawn(seed: int | None) -> list[tuple[str, ...]]:
        return [poisson_clients(NAMES, 0.5, seed=seed, round=r) for r in range(40)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)  # equal in one of 2^320 runs


@pytest.mark.parametrize("secure", [False, True])
def test_the_loop_draws_by_the_settings(secure: bool) -> None:
    privacy = Privacy(1.0, 1.0, 1e-5, secure_noise=secure)
    loop = LoopSettings(participation=Participation(0.5), privacy=privacy)
    draws = [[loop.participants(NAMES, seed=1, round=r) for r in range(40)] for _ in range(2)]
    assert len(set(map(len, draws[0]))) > 1
    assert (draws[0] == draws[1]) != secure
    plain = LoopSettings(participation=Participation(0.5))
    assert {len(plain.participants(NAMES, seed=1, round=r)) for r in range(40)} == {4}


# What a round costs -------------------------------------------------------------------------------


@pytest.fixture
def few_orders(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The orders of Opacus's own example, which take a tenth of the time."""
    monkeypatch.setattr(accounting, "_ORDERS", list(range(2, 33)))
    accounting._divergences.cache_clear()
    yield accounting._ORDERS
    accounting._divergences.cache_clear()


def test_epsilon_is_that_of_the_accountant_s_own_example(few_orders: list[float]) -> None:
    """The example in the docstring of `opacus.accountants.analysis.rdp`."""
    epsilon = epsilon_of([(1e-5, 1.0, 10), (1e-4, 3.0, 4)], delta=1e-5)
    assert epsilon == pytest.approx(0.336, abs=1e-3)


@pytest.mark.parametrize(("rate", "noise"), [(0.05, 0.8), (0.4, 1.0), (1.0, 4.0)])
def test_rounds_are_counted_as_opacus_counts_them(
    rate: float, noise: float, few_orders: list[float]
) -> None:
    accountant = Accountant(Privacy(1.0, noise, 1e-4), rate, [NAMES])
    theirs = RDPAccountant()
    assert accountant.figures() == {"privacy/epsilon": 0.0}
    for _ in range(3):
        accountant.add_round(NAMES[:2], NAMES[:1])  # who took part must not matter
        theirs.step(noise_multiplier=noise, sample_rate=rate)
        expected = theirs.get_epsilon(delta=1e-4, alphas=few_orders)
        assert accountant.figures() == {"privacy/epsilon": pytest.approx(expected, rel=1e-12)}


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Return the exact delta of a Gaussian mechanism (arXiv 1805.06530, Theorem 5)."""
    return float(
        norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
    )


@pytest.mark.parametrize(("noise", "rounds"), [(0.5, 1), (1.0, 5), (3.0, 20), (20.0, 4)])
def test_epsilon_of_all_clients_is_no_less_than_the_exact_one(noise: float, rounds: int) -> None:
    """Rounds with everybody are one Gaussian mechanism, whose delta is known in closed form."""
    epsilon, mu = epsilon_of([(1.0, noise, rounds)], delta=1e-5), math.sqrt(rounds) / noise
    assert gaussian_delta(epsilon, mu) <= 1e-5 < gaussian_delta(0.8 * epsilon, mu)


@pytest.mark.parametrize(("rate", "noise"), [(0.1, 1.0), (0.5, 0.7), (0.9, 2.0)])
def test_epsilon_of_one_sampled_round_is_no_less_than_the_exact_one(
    rate: float, noise: float
) -> None:
    """Hockey-stick divergences of a mixture from a Gaussian, both ways, integrated."""
    epsilon = epsilon_of([(rate, noise, 1)], delta=1e-3)
    x = np.linspace(-20, 20, 40_001)
    plain = norm.pdf(x, 0, noise)
    mixture = rate * norm.pdf(x, 1, noise) + (1 - rate) * plain

    def delta(at: float) -> float:
        ways = ((mixture, plain), (plain, mixture))
        beyond = [np.maximum(0.0, p - math.exp(at) * q) for p, q in ways]
        return max(float(trapezoid(each, x)) for each in beyond)

    assert delta(epsilon) <= 1e-3 < delta(0.4 * epsilon)


def test_noise_of_devices_is_counted_by_those_that_added_it() -> None:
    """By hand: a share of sqrt(3) noise on each of 2 groups, of 6 and 2 clients, with q = 1/2."""
    privacy = Privacy(1.0, 2.0, 1e-3, where="device")
    accountant = Accountant(privacy, 0.5, [NAMES[:6], NAMES[6:]])
    assert accountant.expected("a") == 3
    assert accountant.expected("g") == 1
    accountant.add_round(("a", "b", "c", "g"), ("a", "b", "g"))  # the update of c was refused
    accountant.add_round(("a", "h"), ("a", "h"))
    # 1 / noise^2 of a sum of m updates: expected / (m * 2^2).
    lost = {"a": 3 / 8 + 3 / 4, "b": 3 / 8, "g": 1 / 4, "h": 1 / 4}
    shown = {"a": 2 * 3 / 4, "b": 3 / 4, "c": 3 / 4, "g": 1 / 4, "h": 1 / 4}
    state = accountant.state_dict()
    assert state["lost"] == pytest.approx(lost)
    assert state["shown"] == pytest.approx(shown)
    for name, worst in (("epsilon", 9 / 8), ("epsilon_server", 6 / 4)):
        expected = epsilon_of([(1.0, 1 / math.sqrt(worst), 1)], delta=1e-3)
        assert accountant.figures()[f"privacy/{name}"] == pytest.approx(expected)
        assert gaussian_delta(expected, math.sqrt(worst)) <= 1e-3


@pytest.mark.parametrize("where", ["server", "device"])
def test_an_accountant_goes_on_from_its_state(where: str) -> None:
    privacy = Privacy(1.0, 1.3, 1e-3, where=where)  # type: ignore[arg-type]
    straight, first, second = (Accountant(privacy, 0.3, [NAMES]) for _ in range(3))
    for drawn in ("abc", "", "bh"):
        straight.add_round(drawn, drawn)
    for drawn in ("abc", ""):
        first.add_round(drawn, drawn)
    second.load_state_dict(first.state_dict())
    second.add_round("bh", "bh")
    assert second.figures() == straight.figures()
    assert second.state_dict() == straight.state_dict()
