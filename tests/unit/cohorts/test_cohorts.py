"""A client's result does not depend on whether, and with whom, it trains in a cohort."""

import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mlecs_lightning import ECLM, MLECS
from mlecs_lightning.algorithms import CoPLMs, FedAvg, FedProx, Standalone, StandalonePublic
from mlecs_lightning.cohorts.cohort import Cohort
from mlecs_lightning.cohorts.registry import Cohorts
from mlecs_lightning.rounds import FailureTrace
from mlecs_lightning.rounds.failures import Failure, Fate
from mlecs_lightning.rounds.signals import Interrupted
from mlecs_lightning.types import Batch, ModalitySpec
from tests.unit.cohorts.conftest import NAMES, Shop, off

PLAIN = {
    "optimizer": {"class_path": "SGD", "init_args": {"lr": 0.01, "momentum": 0.9}},
    "lr_scheduler": {"class_path": "StepLR", "init_args": {"step_size": 1, "gamma": 0.5}},
}
MLPS = {**PLAIN, "lora": {"target_modules": ["c_fc", "mlp.c_proj"]}}
DROPS = {
    "optimizer": {"class_path": "AdamW", "init_args": {"lr": 2e-4}},
    "lora": {"dropout": 0.3, "private_r": 2},
    "connector": {"dropout": 0.3},
}
CASES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "private data": (Standalone, PLAIN),
    "both passes in turn": (
        lambda steps: StandalonePublic(steps=steps, order="interleaved"),
        {**DROPS, "clip": 0.1},
    ),
    "messages": (FedAvg, {**DROPS, "clip": 1.0}),
    "B alone": (lambda steps: FedAvg(steps=steps, aggregation="freeze_a"), PLAIN),
    "proximal": (lambda steps: FedProx(steps=steps, mu=0.5), {**DROPS, "clip": 0.1}),
    "contrast": (MLECS, DROPS),
    "two towers": (CoPLMs, PLAIN),
    "two towers in turn": (
        lambda steps: CoPLMs(steps=steps, order="interleaved"),
        {**DROPS, "clip": 0.1},
    ),
}


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Compare the states of clients to within rounding."""
    assert one.keys() == other.keys()
    for client, state in one.items():
        assert off(state["model"], other[client]["model"]) < 1e-6
        assert off(state, other[client]) < 1e-5  # moments are as large as gradients


@pytest.mark.parametrize(
    "case",
    [
        *("private data", "messages", "proximal", "contrast"),
        pytest.param("two towers", marks=pytest.mark.slow),
        pytest.param("two towers in turn", marks=pytest.mark.slow),
        pytest.param("both passes in turn", marks=pytest.mark.slow),
        pytest.param("B alone", marks=pytest.mark.slow),
    ],
)
def test_alone_and_in_a_cohort(
    shop: Shop, tiny: SimpleNamespace, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, options = CASES[case]
    algorithm, clients = make(steps=tiny.steps()), NAMES if case == "messages" else NAMES[:3]
    rounds = 2 if case == "messages" else 1
    alone, one = shop.run(algorithm, clients, size=1, rounds=rounds, **options)
    together, other = shop.run(algorithm, clients, size=8, rounds=rounds, **options)
    same(one, other)
    for left, right in zip(alone, together, strict=True):
        assert (left.client, left.failure) == (right.client, right.failure)
        assert off(left.figures, right.figures) < 1e-5
    assert "after another" not in caplog.text


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (Standalone, 2),
        pytest.param(Standalone, 3, marks=pytest.mark.slow),
        pytest.param(CoPLMs, 2, marks=pytest.mark.slow),
    ],
)
def test_any_order_and_composition(
    shop: Shop, tiny: SimpleNamespace, make: Callable[..., Any], size: int
) -> None:
    algorithm = make(steps=tiny.steps())
    _, usual = shop.run(algorithm, NAMES[:5], size=8, **DROPS)
    order = ("c3", "c0", "c4", "c2", "c1")
    replies, other = shop.run(algorithm, order, size=size, **DROPS)
    assert tuple(reply.client for reply in replies) == order
    same(usual, {client: other[client] for client in usual})


# Batches, texts and clients that differ ----------------------------------------------------------


class Uneven(Standalone):
    """Clients with batches of other sizes, and of other numbers of steps."""

    def local_passes(self, edge: Any, loaders: Any, ctx: Any, broadcast: Any = None) -> Any:  # noqa: ANN401
        number = int(edge.name[1:])
        batches = loaders.private.take(3 + number % 2, seed=ctx.seed_for(edge.name, "private"))
        table = loaders.private.table
        few = (table.__getitems__([*range(n * number, (n + 1) * number)]) for n in (1, 2))
        return edge.fit(few if number % 3 else batches, stage="private")


def test_other_batches_and_numbers_of_steps(shop: Shop) -> None:
    _, one = shop.run(Uneven(), NAMES[:5], size=1, rounds=2, **DROPS)
    _, other = shop.run(Uneven(), NAMES[:5], size=5, rounds=2, **DROPS)
    same(one, other)


def test_clients_that_differ_fall_into_several_cohorts(
    shop: Shop, tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensors = {"c1": ["fourier"], "c2": ["pixels"], "c3": ["fourier"], "c5": ["pixels"]}
    sizes: list[int] = []
    run = Cohort.run
    monkeypatch.setattr(
        Cohort, "run", lambda self, jobs: sizes.append(len(jobs)) or run(self, jobs)
    )
    algorithm, clients = Standalone(steps=tiny.steps()), NAMES[:7]
    _, one = shop.run(algorithm, clients, size=1, sensors=sensors, **PLAIN)
    replies, other = shop.run(algorithm, clients, size=2, sensors=sensors, **PLAIN)
    same(one, other)
    assert tuple(reply.client for reply in replies) == clients
    assert sizes == [2, 2, 2]  # c0 and c4, c1 and c3, c2 and c5; c6 comes alone


# Failures ----------------------------------------------------------------------------------------


class Failing:
    """The data of one client fail in the second step, or are not finite there."""

    how = ""

    def local_passes(self, edge: Any, loaders: Any, ctx: Any, broadcast: Any = None) -> Any:  # noqa: ANN401
        batches = loaders.private.take(3, seed=ctx.seed_for(edge.name, "private"))
        batches = self._spoilt(batches) if edge.name == "c2" else batches
        return edge.fit(batches, getattr(self, "mutual", None), stage="private")

    def _spoilt(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for number, batch in enumerate(batches):
            if number == 1 and self.how == "error":
                raise OSError("a sensor failed")
            if number == 1 and self.how == "infinite":
                inputs = {name: each * math.inf for name, each in batch.inputs.items()}
                batch = batch._replace(inputs=inputs)
            yield batch


@dataclass(frozen=True)
class Traced(FailureTrace):
    """The second client crashes in its second step, or misses the deadline there."""

    how: str = ""

    def fate(self, round: int, client: str) -> Fate:
        if client != "c2":
            return Fate()
        return Fate(crash=1 if self.how == "crash" else None, budget=1)


@pytest.mark.parametrize("base", [Standalone, pytest.param(CoPLMs, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("how", "kind", "error"),
    [
        ("error", "error", "OSError"),
        ("infinite", "error", "NonFiniteError"),
        ("crash", "crash", ""),
        pytest.param("late", "straggler", "", marks=pytest.mark.slow),
    ],
)
def test_failure_of_one_client_is_its_own(
    shop: Shop, base: type, how: str, kind: str, error: str
) -> None:
    algorithm = type("F", (Failing, base), {"how": how})()
    trace = Traced(how=how) if how in ("crash", "late") else None
    replies, states = shop.run(algorithm, NAMES[:5], size=8, trace=trace, **DROPS)
    failed = Failure(0, "c2", kind, "private", error)  # type: ignore[arg-type]
    assert [reply.failure for reply in replies] == [None, None, failed, None, None]
    rest = tuple(name for name in NAMES[:5] if name != "c2")
    _, without = shop.run(algorithm, rest, size=8, **DROPS)
    assert states.pop("c2") is None
    assert off(states, without) == 0.0


def test_a_run_that_stops_in_a_cohort_keeps_nothing_of_it(
    shop: Shop, tiny: SimpleNamespace
) -> None:
    algorithm = Standalone(steps=tiny.steps())
    _, whole = shop.run(algorithm, NAMES[:4], size=2, **DROPS)
    calls = 0

    def check_stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 6:  # in the second cohort
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        shop.run(algorithm, NAMES[:4], size=2, check_stop=check_stop, **DROPS)
    kept = {client: shop.federation.store.get(client) for client in NAMES[:4]}
    assert [client for client, state in kept.items() if state] == ["c0", "c1"]
    # The module has its weights again.
    _, again = shop.run(algorithm, NAMES[:4], size=2, **DROPS)
    assert off(again, whole) == off(kept["c0"], whole["c0"]) == 0.0


# What cannot train together ----------------------------------------------------------------------


class Aside(FedProx):
    """An objective that goes round the module that it is given."""

    def edge_objective(self, edge: Any, broadcast: Any) -> Any:  # noqa: ANN401
        return lambda module, batch: edge.module(batch)


class Twice(FedProx):
    """An objective that reads its batch twice, as for consistency under dropout."""

    def edge_objective(self, edge: Any, broadcast: Any) -> Any:  # noqa: ANN401
        return lambda module, batch: {
            "loss": module.read(batch).loss + module.read(batch).loss,
        }


class Noisy(nn.Module):
    """An extractor of the user's, with weights of an unknown form, that draws noise."""

    def __init__(self, spec: ModalitySpec) -> None:
        super().__init__()
        self.out_features = 4
        self.weight = nn.Parameter(torch.randn(spec.shape[0], 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + torch.randn(len(x), 4)


def test_an_unknown_extractor_runs_client_by_client(shop: Shop, tiny: SimpleNamespace) -> None:
    path = f"{Noisy.__module__}.{Noisy.__name__}"
    options = {**DROPS, "extractors": {"profile": {"class_path": path}}}
    algorithm = Standalone(steps=tiny.steps())
    _, one = shop.run(algorithm, NAMES[:3], size=1, **options)
    _, other = shop.run(algorithm, NAMES[:3], size=8, **options)
    same(one, other)


class Normed(nn.Module):
    """An extractor of the user's, whose buffers change while it trains."""

    def __init__(self, spec: ModalitySpec) -> None:
        super().__init__()
        self.out_features = 4
        self.layers = nn.Sequential(nn.Linear(spec.shape[0], 4), nn.BatchNorm1d(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def test_buffers_train_with_whoever_takes_a_step(shop: Shop) -> None:
    path = f"{Normed.__module__}.{Normed.__name__}"
    options = {**PLAIN, "extractors": {"profile": {"class_path": path}}}
    _, one = shop.run(Uneven(), NAMES[2:6], size=1, **options)
    _, other = shop.run(Uneven(), NAMES[2:6], size=4, **options)
    same(one, other)
    for state in one.values():
        assert float(state["model"]["extractors.profile.layers.1.running_mean"].abs().max()) > 0


@pytest.mark.parametrize(
    ("make", "options", "why"),
    [
        (Aside, PLAIN, "goes round the module"),
        (Twice, DROPS, "reads its batch twice"),
        (FedAvg, {**PLAIN, "backbone": {"gradient_checkpointing": True}}, "gradient_checkpointing"),
        (FedAvg, {**PLAIN, "optimizer": {"class_path": "Adafactor"}}, "Adafactor may mix"),
        pytest.param(ECLM, MLPS, "sub-models differ", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_train_together_trains_alone_and_says_why(
    shop: Shop,
    tiny: SimpleNamespace,
    make: Callable[..., Any],
    options: dict[str, Any],
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    algorithm = make(steps=tiny.steps())
    _, one = shop.run(algorithm, NAMES[:2], size=1, **options)
    assert why not in caplog.text
    _, other = shop.run(algorithm, NAMES[:2], size=2, **options)
    assert off(one, other) == 0.0
    assert why in caplog.text


@pytest.mark.parametrize("attention", [pytest.param("eager", marks=pytest.mark.slow), "sdpa"])
def test_attention_dropout_is_not_shared(
    shop: Shop, tiny: SimpleNamespace, attention: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**PLAIN, "backbone": {"attn_implementation": attention}}
    algorithm = Standalone(steps=tiny.steps())
    shop.run(algorithm, NAMES[:1], size=1, **options)
    lm = shop.federation.module("c0").tower().backbone.lm
    for layer in lm.modules():
        if hasattr(layer, "attn_dropout"):
            layer.attn_dropout = nn.Dropout(0.2)
    _, one = shop.run(algorithm, NAMES[:2], size=1, **options)
    _, other = shop.run(algorithm, NAMES[:2], size=2, **options)
    assert off(one, other) == 0.0
    assert "after another" in caplog.text


def test_a_cohort_for_which_the_memory_is_too_small_is_cut_in_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Crowded:
        def run(self, jobs: list[Callable[[], int]]) -> list[int]:
            if len(jobs) > 2:
                raise torch.OutOfMemoryError
            return [job() for job in jobs]

    monkeypatch.setattr(Cohorts, "_cohort", lambda *_: Crowded())
    models = SimpleNamespace(architecture=lambda _: "a", module=lambda _: None)
    cohorts = Cohorts(models, SimpleNamespace(), 8)  # type: ignore[arg-type]
    names = [f"c{n}" for n in range(8)]
    jobs = [partial(int, n) for n in range(8)]
    assert cohorts.run(names, jobs) == list(range(8))
    assert cohorts.size("c0") == 2
