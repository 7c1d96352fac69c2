"""What a run may be compared by, and what is said before it trains."""

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.fabric import Fabric

from mlecs_lightning import Digits
from mlecs_lightning.callbacks.monitor import Monitor, MonitorMode, unknown_value
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.evaluation.continual import ContinualEvaluation
from mlecs_lightning.evaluation.parties import Evaluator
from mlecs_lightning.federated.monitoring import DEFAULT_MONITOR, check_monitor
from mlecs_lightning.metrics import ReferencedText
from mlecs_lightning.rounds.participation import LoopSettings

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("mode", "values", "ranked"),
    [
        ("min", [0.5, 0.2, 0.4], [1, 2, 0]),
        ("max", [0.5, 0.2, 0.4], [0, 2, 1]),
        ("min", [0.2, 0.1, 0.1, 0.2], [1, 2, 0, 3]),
        ("max", [0.1, 0.2, 0.2, 0.1], [1, 2, 0, 3]),
        ("min", [NAN, 3.0, -INF, 2.0], [3, 1]),
        ("max", [INF, 3.0, None, 2.0], [1, 3]),
        ("max", [None, NAN], []),
    ],
)
def test_rounds_are_ranked_by_finite_values_the_earliest_of_equals_first(
    mode: MonitorMode, values: list[float | None], ranked: list[int]
) -> None:
    history = [{"round": n} | ({} if v is None else {"x": v}) for n, v in enumerate(values)]
    assert Monitor("x", mode).ranked(history) == ranked


@pytest.mark.parametrize("mode", ["least", "Min", "", None, "auto"])
def test_another_mode_is_refused(tiny: SimpleNamespace, tmp_path: Path, mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode of monitor 'x' must be min or max, got {mode!r}"):
        tiny.trainer(tmp_path, monitor="x", monitor_mode=mode)


def test_values_of_single_clients_are_named_once() -> None:
    known = [f"clients/{c}/val/{k}" for c in ("a", "val", "c d") for k in ("loss", "f1")]
    known += ["clients/val/loss", "server/val/loss", "clients/a/domains/night/f1"]
    with pytest.raises(ConfigurationError) as caught:
        raise unknown_value("key", "clients/b/val/loss", known)
    assert str(caught.value).endswith(
        "['clients/NAME/domains/night/f1', 'clients/NAME/val/f1', 'clients/NAME/val/loss', "
        "'clients/val/loss', 'server/val/loss']"
    )


# What is known before training --------------------------------------------------------------------


def judge(data: Digits, limit: int | None = 1, drawn: int | None = None) -> Evaluator:
    fabric = Fabric(accelerator="cpu", devices=1)
    return Evaluator(data, fabric=fabric, bertscore=False, limit=limit, limit_clients=drawn)


@pytest.mark.parametrize("references", [False, True])
def test_the_names_are_those_that_validation_gives(
    tiny: SimpleNamespace, mlecs_run: SimpleNamespace, references: bool
) -> None:
    data = tiny.data()
    federation = tiny.build(mlecs_run.algorithm, None, data)
    if references:
        table = data.public("val")
        first = ReferencedText(table.targets[0], [table.targets[0], "another"])
        data._public["val"] = replace(table, targets=(first, *table.targets[1:]))
    known = judge(data).validation_names(federation.clients)
    assert set(known) == set(judge(data).validate(federation))
    assert ("server/val/rouge_lsum_mean" in known) == references
    assert judge(data, limit=0).validation_names(federation.clients) == []


def settings(val_every: int) -> LoopSettings:
    return LoopSettings(
        val_every=val_every,
        limit_train=None,
        keeps_messages=True,
    )


def checked(
    mlecs_run: SimpleNamespace,
    name: str = DEFAULT_MONITOR,
    mode: MonitorMode = "min",
    *,
    done: int = 0,
    limit: int | None = 1,
    drawn: int | None = None,
    val_every: int = 1,
    save_top_k: int = 1,
    clients: tuple[str, ...] = ("kitchen", "hall", "study"),
) -> list[str]:
    """Return what is warned of before four rounds."""
    run: Any = SimpleNamespace(
        monitor=Monitor(name, mode),
        federation=SimpleNamespace(evaluated=clients),
        evaluator=judge(mlecs_run.data, limit, drawn),
        continual=ContinualEvaluation(mlecs_run.data),
        next_round=done,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_monitor(run, settings(val_every), max_rounds=4, save_top_k=save_top_k)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, ""),
        ({"val_every": 4}, ""),
        ({"val_every": 0}, "none is validated (trainer.check_val_every_n_rounds is 0"),
        ({"val_every": 5}, "none is validated (trainer.check_val_every_n_rounds is 5, max_rounds"),
        ({"val_every": 3, "done": 3}, "none is validated"),
        ({"limit": 0}, "it has no samples"),
        ({"clients": ()}, "it has no samples"),
        # Where nothing is to be kept, or no round is to come, nothing is amiss.
        ({"val_every": 0, "save_top_k": 0}, ""),
        ({"val_every": 0, "save_top_k": -1}, ""),
        ({"val_every": 0, "done": 4}, ""),
        ({"name": "server/val/accuracy", "mode": "max"}, ""),
        ({"name": "clients/hall/val/macro_f1", "mode": "max"}, ""),
    ],
)
def test_it_is_said_at_the_start_if_no_round_will_have_the_value(
    mlecs_run: SimpleNamespace, values: dict[str, Any], said: str
) -> None:
    messages = checked(mlecs_run, **values)
    assert len(messages) == bool(said)
    assert all(said in message for message in messages)


@pytest.mark.parametrize("val_every", [0, 1])
@pytest.mark.parametrize(
    ("name", "mode", "said"),
    [
        ("clients/val/los", "min", r"'clients/val/los' is no value of a round; .*'clients/val/lo"),
        ("val/loss", "min", "is no value of a round"),
        ("clients/attic/val/loss", "min", "'clients/NAME/val/loss'"),
        ("server/public/loss", "min", "is no value of a round"),
        ("stream/present/macro_f1", "max", "is no value of a round"),
        ("server/val/loss", "max", "is max, but a smaller .* set trainer.monitor_mode to min"),
        ("clients/val/macro_f1", "min", "is min, but a larger .* set trainer.monitor_mode to max"),
        ("clients/hall/val/rouge_lsum", "min", "set trainer.monitor_mode to max"),
    ],
)
def test_a_value_that_cannot_be_is_refused(
    mlecs_run: SimpleNamespace, name: str, mode: MonitorMode, said: str, val_every: int
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        checked(mlecs_run, name, mode, val_every=val_every)


def test_a_value_of_one_client_is_refused_where_a_share_is_scored(
    mlecs_run: SimpleNamespace,
) -> None:
    with pytest.raises(ConfigurationError, match="client 'hall' is scored only after the rounds"):
        checked(mlecs_run, "clients/hall/val/loss", drawn=2)
    assert checked(mlecs_run, "clients/hall/val/loss", drawn=3) == []  # all of them
    assert checked(mlecs_run, "clients/val/loss", drawn=2) == []
