"""What an update may come to, and what a client may say of itself."""

import math
from typing import Any

import pytest
import torch

from mlecs_lightning.rounds.bounds import (
    ChangedClaimError,
    Claims,
    LargeUpdateError,
    Moves,
    UpdateLimits,
    bounded,
)
from mlecs_lightning.wire import Message

FORMER = {"adapter/a": torch.ones(3, 4), "adapter/b": torch.zeros(4)}
RELATIVE = UpdateLimits(None, 100.0, "refuse")


def update(size: float) -> Message:
    """Return an update of which every value has moved by ``size``."""
    tensors = {name: old + size for name, old in FORMER.items()}
    return Message({**tensors, "fused/x": torch.full((5,), 1e30)}, {"samples": 3})


def known(*rounds: list[float]) -> Moves:
    moves = Moves()
    for sizes in rounds:
        for size in sizes:
            moves.add(size)
        moves.end_round()
    return moves


# How far --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 99.0, -99.0])
def test_an_update_within_the_limit_stays_as_it_is(size: float) -> None:
    message = update(size)
    result, moved = bounded(message, FORMER, RELATIVE, usual=1.0)
    assert result is message
    assert moved == pytest.approx(abs(size), rel=1e-4)  # 1 + 0.001 in float32


@pytest.mark.parametrize("size", [101.0, 1e6, 1e20, 1e38, -3e38])
def test_a_larger_one_is_refused_whatever_its_size(size: float) -> None:
    with pytest.raises(LargeUpdateError, match=r"norm of the update is .*max_ratio") as info:
        bounded(update(size), FORMER, RELATIVE, usual=1.0)
    assert "inf" not in str(info.value)  # squares of 1e38 are none of float32


@pytest.mark.parametrize("size", [101.0, 1e20, 3e38])
def test_or_is_clipped_to_the_limit(size: float) -> None:
    message, moved = bounded(update(size), FORMER, UpdateLimits(None, 100.0, "clip"), usual=1.0)
    assert moved == pytest.approx(100.0)
    for name, old in FORMER.items():
        torch.testing.assert_close(message.tensors[name] - old, torch.full_like(old, 100.0))
    assert torch.equal(message.tensors["fused/x"], torch.full((5,), 1e30))
    assert message.scalars == {"samples": 3}


@pytest.mark.parametrize(
    ("limits", "usual", "key"),
    [
        (UpdateLimits(2.0, 100.0, "refuse"), 1.0, "max_norm"),
        (UpdateLimits(2.0, None, "refuse"), 1.0, "max_norm"),
        (UpdateLimits(1e9, 10.0, "refuse"), 0.05, "max_ratio"),
    ],
)
def test_the_smaller_limit_holds_and_is_named(limits: UpdateLimits, usual: float, key: str) -> None:
    with pytest.raises(LargeUpdateError, match=rf"trainer\.update_limits\.{key}"):
        bounded(update(1.0), FORMER, limits, usual=usual)  # its norm is 4
    _, moved = bounded(update(1.0), FORMER, UpdateLimits(None, None, "refuse"), usual=usual)
    assert moved == pytest.approx(1.0)


def test_what_starts_from_nothing_has_no_limit() -> None:
    message = update(1e38)
    assert bounded(message, {}, UpdateLimits(1.0, 1.0, "refuse"), usual=0.01) == (message, 0.0)


# What is usual --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "usual"),
    [
        ([], 1.0),  # nothing is known
        ([[]], 1.0),  # nobody was there
        ([[0.0, 0.0]], 1.0),  # nothing has moved
        ([[0.5]], 0.5),
        ([[0.2, 50.0]], 0.2),  # of two the one that moves less
        ([[0.2, 0.3, 90.0]], 0.3),  # a minority does not shift it
        ([[90.0, 0.2, 0.3, 80.0, 0.4]], 0.4),
        ([[0.2], [0.4], [0.6]], 0.4),
        ([[0.5], [0.5], [40.0]], 0.5),  # nor does a single round
        ([[1e-6, 1e-6, 1e-6]], 0.01),  # a learning rate that warms up
    ],
)
def test_what_is_usual_is_the_median_of_rounds_past(
    rounds: list[list[float]], usual: float
) -> None:
    assert known(*rounds).usual() == usual


def test_a_round_does_not_measure_itself() -> None:
    moves = known([0.5])
    for size in (7.0, 7.0, 7.0):
        moves.add(size)
        assert moves.usual() == 0.5
    moves.end_round()
    assert moves.usual() == 0.5
    assert moves.state_dict() == [0.5, 7.0]
    other = Moves()
    other.load_state_dict(moves.state_dict())
    assert other.usual() == moves.usual()


def test_a_minority_cannot_raise_the_limit_round_by_round() -> None:
    """Two of five go as far as they may in every round: the limit stays where it is."""
    moves, largest = Moves(), []
    for _ in range(20):
        limit = 100 * moves.usual()
        for size in (0.5, 0.5, 0.5, limit, limit):
            moves.add(size)
        moves.end_round()
        largest.append(limit)
    assert largest[1:] == [50.0] * 19
    assert math.isclose(largest[0], 100.0)


# Claims ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [31, 29, 10**6])
def test_the_first_word_counts(later: int) -> None:
    claims = Claims()
    claims.check("hall", "all", {"samples": 30})
    claims.register("hall", "all", {"samples": 30})
    claims.check("hall", "all", {"samples": 30})
    with pytest.raises(ChangedClaimError, match=f"'samples' is {later}, registered is 30; .*sched"):
        claims.check("hall", "all", {"samples": later})
    claims.register("hall", "all", {"samples": later})  # the first one stays
    claims.check("hall", "all", {"samples": 30})


@pytest.mark.parametrize(
    ("client", "phase"), [("kitchen", "all"), ("hall", "night"), ("kitchen", "night")]
)
def test_another_client_and_another_phase_have_a_word_of_their_own(client: str, phase: str) -> None:
    claims = Claims()
    claims.register("hall", "all", {"samples": 30})
    claims.check(client, phase, {"samples": 7})
    claims.register(client, phase, {"samples": 7})
    other = Claims()
    other.load_state_dict(claims.state_dict())
    for each in (claims, other):
        each.check("hall", "all", {"samples": 30})
        with pytest.raises(ChangedClaimError):
            each.check(client, phase, {"samples": 30})


@pytest.mark.parametrize("said", [{}, {"modalities": ("a",)}, {"samples": 5}])
def test_what_was_not_registered_may_be_said(said: dict[str, Any]) -> None:
    claims = Claims()
    claims.register("hall", "all", {})
    claims.check("hall", "all", said)
