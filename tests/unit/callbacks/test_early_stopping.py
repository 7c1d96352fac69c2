import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlecs_lightning import FedAvg
from mlecs_lightning.callbacks import EarlyStopping
from mlecs_lightning.callbacks.monitor import MonitorMode
from mlecs_lightning.errors import ConfigurationError

LOSS, SCORE = "clients/val/loss", "clients/val/macro_f1"


def stopped(callback: EarlyStopping, values: list[float | None], *, first: int = 0) -> int | None:
    """Return after which round of these a callback stops."""
    for number, value in enumerate(values, start=first):
        callback.on_round_end(
            round=number, metrics={} if value is None else {callback.monitor: value}
        )
        if callback.should_stop:
            return number
    return None


@pytest.mark.parametrize(
    ("options", "values", "expected"),
    [
        ({"patience": 2}, [3, 2, 2, 2, 1], 3),
        ({"patience": 2}, [3, 2, 2, 1, 1, 1], 5),
        ({"patience": 1}, [3, 2, 1], None),
        ({"patience": 1, "mode": "max", "monitor": SCORE}, [3, 4, 4], 2),
        ({"patience": 1, "mode": "max", "monitor": SCORE}, [3, 2], 1),
        # 0.9 is no improvement on 1 by more than 0.1, 0.8 is.
        ({"patience": 2, "min_delta": 0.1}, [1.0, 0.95, 0.8, 0.75, 0.71], 4),
        ({"patience": 2}, [3, None, 4, None, None, 4], 5),
        ({"patience": 5}, [3, math.nan], 1),
        ({"patience": 2, "check_finite": False}, [3, math.nan, math.inf, 2], 2),
    ],
)
def test_it_stops_after_patience_rounds_without_improvement(
    options: dict[str, Any], values: list[float | None], expected: int | None
) -> None:
    assert stopped(EarlyStopping(**options), values) == expected


def test_rounds_of_a_checkpoint_count() -> None:
    values: list[float | None] = [3, 2, 2, 2, 1]
    for done in range(4):
        callback = EarlyStopping(patience=2)
        callback.on_fit_start(max_rounds=9, clients=(), folder="")
        history: tuple[dict[str, float], ...] = tuple(
            {"round": n, LOSS: float(v)} for n, v in enumerate(values[:done]) if v is not None
        )
        callback.on_resume(history=history)
        assert not callback.should_stop
        assert stopped(callback, values[done:], first=done) == 3
    callback.on_resume(history=({"round": 4, LOSS: 0.0},))
    assert callback.stopped_round == 3, "what has stopped does not go on"
    callback.on_fit_start(max_rounds=9, clients=(), folder="")
    assert not callback.should_stop, "but a new run does"


def test_a_round_in_which_the_client_was_not_scored_does_not_count() -> None:
    stop = EarlyStopping("clients/a/val/loss", patience=1)
    stop.on_fit_start(max_rounds=4, clients=("a", "b"), folder="")
    for number, client in enumerate("abba"):
        assert not stop.should_stop
        stop.on_round_end(round=number, metrics={f"clients/{client}/val/loss": 1.0})
    assert stop.stopped_round == 3
    stop.on_fit_start(max_rounds=4, clients=("b",), folder="")
    with pytest.raises(ConfigurationError, match="clients/a/val/loss"):
        stop.on_round_end(round=0, metrics={"clients/b/val/loss": 1.0})


def test_a_value_that_nobody_has_is_named() -> None:
    callback = EarlyStopping("clients/val/lost")
    with pytest.raises(ConfigurationError, match=r"'clients/val/lost'.*\['clients/val/loss'\]"):
        callback.on_round_end(round=0, metrics={LOSS: 1.0})
    with pytest.warns(UserWarning, match="no round had a 'clients/val/lost'"):
        callback.on_fit_end(summary={})


@pytest.mark.parametrize(
    "values", [{"patience": 0}, {"min_delta": -1.0}, {"min_delta": math.nan}, {"mode": "least"}]
)
def test_values_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(values))):
        EarlyStopping(**values)


@pytest.mark.parametrize(
    ("monitor", "mode", "said"),
    [
        (LOSS, "max", "mode is max, but a smaller clients/val/loss is better: set mode to min"),
        (SCORE, "min", "mode is min, but a larger clients/val/macro_f1 is better: set mode to max"),
        ("server/val/rouge_lsum", "min", "a larger server/val/rouge_lsum is better"),
    ],
)
def test_a_mode_in_which_the_worst_is_the_best_is_refused(
    monitor: str, mode: MonitorMode, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        EarlyStopping(monitor, mode=mode)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_of_other_values_any_direction_may_be_the_better_one(mode: MonitorMode) -> None:
    assert EarlyStopping("aggregate/error", mode=mode).mode == mode


def test_the_summary_of_a_run_that_ended_early_tells_how_long_it_was_to_be(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    stop = EarlyStopping("server/val/loss", patience=1, min_delta=100.0)
    trainer = tiny.trainer(tmp_path, max_rounds=3, check_val_every_n_rounds=1, callbacks=[stop])
    summary = trainer.fit(FedAvg(steps=tiny.steps()), tiny.data(), tiny.parties())
    assert (summary["rounds"], summary["planned"]) == (2, 3)


@pytest.mark.slow
def test_a_run_ends_early_and_a_resumed_one_where_the_unbroken_one_did(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    algorithm = FedAvg(steps=tiny.steps())

    def fit(name: str, rounds: int, ckpt: str | None = None) -> dict[str, Any]:
        # Nothing is so much better: the first round is the best, and the third the last.
        stop = EarlyStopping("server/val/loss", patience=2, min_delta=100.0)
        trainer = tiny.trainer(
            tmp_path / name,
            max_rounds=rounds,
            check_val_every_n_rounds=1,
            enable_checkpointing=True,
            callbacks=[stop],
        )
        summary: dict[str, Any] = trainer.fit(algorithm, tiny.data(), tiny.parties(), ckpt)
        return summary

    assert fit("one", 9)["rounds"] == 3
    assert fit("two", 2)["rounds"] == 2
    assert fit("two", 9, "last")["rounds"] == 3
    assert fit("two", 9, "last")["rounds"] == 3, "it has stopped"
    ends = [
        torch.load(tmp_path / n / "tiny/version_0/checkpoints/round=0002.ckpt", weights_only=True)
        for n in ("one", "two")
    ]
    one, other = (end["server"]["model"] for end in ends)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
