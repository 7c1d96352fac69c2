from typing import Any

import pytest

from mlecs_lightning.rounds.failures import (
    Failure,
    FailureLog,
    FailureTrace,
    Fate,
    SimulatedFailure,
)


def test_a_fate_is_a_function_of_round_client_and_seed() -> None:
    trace = FailureTrace(dropout_rate=0.5, crash_rate=0.5, seed=3)
    one = [trace.fate(r, c) for r in range(20) for c in "ab"]
    again = [
        FailureTrace(dropout_rate=0.5, crash_rate=0.5, seed=3).fate(r, c)
        for r in range(20)
        for c in "ab"
    ]
    assert one == again
    assert one[::2] != one[1::2]
    other = FailureTrace(dropout_rate=0.5, crash_rate=0.5, seed=4)
    assert one != [other.fate(r, c) for r in range(20) for c in "ab"]


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_rates_are_those_asked_for(rate: float) -> None:
    trace = FailureTrace(
        dropout_rate=rate, straggler_rate=rate, crash_rate=rate, deadline=40, slowdown=4.0
    )
    fates = [trace.fate(r, f"client-{c}") for r in range(40) for c in range(50)]
    margin = 4 * (rate * (1 - rate) / len(fates)) ** 0.5  # four standard deviations
    for happened in (
        [fate.drops for fate in fates],
        [fate.budget == 10 for fate in fates],
        [fate.crash is not None for fate in fates],
    ):
        assert sum(happened) / len(fates) == pytest.approx(rate, abs=margin)
    assert {fate.budget for fate in fates} <= {10, 40}


def test_one_rate_does_not_shift_the_draws_of_another() -> None:
    few, many = FailureTrace(dropout_rate=0.1, crash_rate=0.3), FailureTrace(crash_rate=0.3)
    assert [few.fate(r, "a").crash for r in range(50)] == [
        many.fate(r, "a").crash for r in range(50)
    ]


def test_a_crash_comes_within_the_first_steps_at_any_of_them() -> None:
    trace = FailureTrace(crash_rate=1.0, crash_within=3)
    assert {trace.fate(r, "a").crash for r in range(100)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("fate", "kind", "steps"),
    [(Fate(budget=2), "straggler", 2), (Fate(crash=3), "crash", 3), (Fate(crash=0), "crash", 0)],
)
def test_a_watch_stops_before_the_step(fate: Fate, kind: str, steps: int) -> None:
    before_step = fate.watch()
    for _ in range(steps):
        before_step()
    with pytest.raises(SimulatedFailure, match=f"after {steps} steps") as caught:
        before_step()
    assert caught.value.kind == kind


def test_a_good_fate_stops_nothing() -> None:
    before_step = Fate().watch()
    for _ in range(1000):
        before_step()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"dropout_rate": 1.5}, r"trainer\.faults\.dropout_rate must lie in \[0, 1\], got 1\.5"),
        ({"straggler_rate": -1}, r"straggler_rate must lie in \[0, 1\], got -1"),
        ({"crash_rate": 2}, r"crash_rate must lie in"),
        ({"slowdown": 0.5}, r"slowdown must be at least 1, got 0\.5"),
        ({"deadline": 0}, r"deadline must be at least 1, got 0"),
        ({"crash_within": 0}, r"crash_within must be at least 1, got 0"),
    ],
)
def test_values_out_of_range_name_their_key(values: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FailureTrace(**values)  # type: ignore[arg-type]


def test_the_log_counts_every_kind_and_goes_on_from_its_state() -> None:
    log, other = FailureLog(), FailureLog()
    log.failures += [
        Failure(0, "a", "crash", "x"),
        Failure(1, "a", "crash", "y"),
        Failure(1, "b", "refused", "uplink", "ChannelError"),
    ]
    other.load_state_dict(log.state_dict())
    assert other.failures == log.failures
    assert other.counts() == {"dropout": 0, "straggler": 0, "crash": 2, "error": 0, "refused": 1}


@pytest.mark.parametrize(
    "parts",
    [
        {"kind": "lazy"},
        {"stage": "x" * 65},
        {"stage": "patient 7: 38.5 C"},
        {"error": "x" * 65},
        {"error": "KeyError: 'anna'"},
        {"error": "7"},
    ],
)
def test_a_fault_has_no_room_for_a_text(parts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Failure(**{"round": 0, "client": "hall", "kind": "error", **parts})


def test_a_fault_of_an_exception_tells_its_class_and_no_more() -> None:
    anna = type("Anna, 38.5 C", (ValueError,), {})
    about: dict[str, Any] = {"kind": "error", "round": 2, "client": "hall"}
    for error, stage, reason in (
        (KeyError("anna"), "private", "client 'hall', stage 'private': KeyError"),
        (anna("anna"), "private", "client 'hall', stage 'private': Exception"),
        (OSError("anna"), "of anna: 38.5", "client 'hall': OSError"),
    ):
        assert Failure.of(error, stage=stage, **about).reason == reason


def test_texts_of_older_runs_are_left_behind() -> None:
    log = FailureLog()
    log.load_state_dict([{"round": 0, "client": "a", "kind": "error", "reason": "row 7: anna"}])
    assert log.state_dict() == [
        {"round": 0, "client": "a", "kind": "error", "stage": "", "error": ""}
    ]
