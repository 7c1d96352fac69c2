"""Going on with another optimiser: present options, and the moments that it can use."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlecs_lightning import FedAvg
from mlecs_lightning.class_paths import build_class
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.rounds import Participation
from mlecs_lightning.rounds.optimization import Optimization
from mlecs_lightning.settings import ModelSettings

ROUNDS = 3


def of(name: str, **options: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": options}


ADAM, HALVED = of("AdamW", lr=0.1), of("ExponentialLR", gamma=0.5)
ONE_CYCLE = of("OneCycleLR", max_lr=0.2, total_steps=9)


def fresh(optimizer: dict[str, Any], scheduler: dict[str, Any] | None) -> Optimization:
    """Build an optimiser over a matrix and a vector, as a module does."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(3))]
    built = build_class(optimizer, parameters, home="torch.optim", key="optimizer")
    rates = scheduler and build_class(
        scheduler, built, home="torch.optim.lr_scheduler", key="lr_scheduler"
    )
    settings = ModelSettings(optimizer=optimizer, lr_scheduler=scheduler)
    return Optimization(settings, built, rates)


def trained(optimization: Optimization, *, rounds: int, steps: bool = True) -> Optimization:
    for _ in range(rounds):
        for parameter in optimization.optimizer.param_groups[0]["params"] if steps else ():
            parameter.grad = torch.ones_like(parameter)
        if steps:
            optimization.optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimization.end_round()
    return optimization


def test_ended_rounds_are_counted_and_come_back_with_the_state() -> None:
    before, after = trained(fresh(ADAM, HALVED), rounds=ROUNDS), fresh(ADAM, HALVED)
    assert (before.rounds, after.rounds) == (ROUNDS, 0)
    after.load_state_dict(before.state_dict())
    assert after.rounds == ROUNDS


# What the run was trained with, what it goes on with, and whether its moments can be used.
CHANGES: dict[str, tuple[tuple[Any, Any], tuple[Any, Any], bool]] = {
    "rate": ((ADAM, None), (of("AdamW", lr=0.01), None), True),
    "decay": ((ADAM, None), (of("torch.optim.AdamW", lr=0.1, weight_decay=0.3), None), True),
    "betas": ((ADAM, HALVED), (of("AdamW", lr=0.1, betas=[0.5, 0.9]), HALVED), True),
    "momentum": ((of("SGD", lr=0.1, momentum=0.9), None), (of("SGD", lr=0.2), None), True),
    "rate under a scheduler": ((ADAM, HALVED), (of("AdamW", lr=0.01), HALVED), True),
    "other scheduler": ((ADAM, HALVED), (ADAM, ONE_CYCLE), True),
    "other decay of the rate": ((ADAM, HALVED), (ADAM, of("ExponentialLR", gamma=0.1)), True),
    "longer cosine": (
        (ADAM, of("CosineAnnealingLR", T_max=4)),
        (ADAM, of("CosineAnnealingLR", T_max=40)),
        True,
    ),
    "longer cycle": ((ADAM, ONE_CYCLE), (ADAM, of("OneCycleLR", max_lr=0.2, total_steps=20)), True),
    "scheduler added": ((ADAM, None), (ADAM, HALVED), True),
    "scheduler removed": ((ADAM, ONE_CYCLE), (ADAM, None), True),
    "other class": ((ADAM, HALVED), (of("SGD", lr=0.1, momentum=0.9), HALVED), False),
    "class of no moments": ((of("SGD", lr=0.1), None), (ADAM, None), False),
    "class that begins with a state": ((ADAM, None), (of("Adagrad", lr=0.1), None), False),
    "more state": ((ADAM, None), (of("AdamW", lr=0.1, amsgrad=True), None), False),
    "centred": ((of("RMSprop", lr=0.1), None), (of("RMSprop", lr=0.1, centered=True), None), False),
}


@pytest.mark.parametrize(("before", "now", "kept"), CHANGES.values(), ids=CHANGES.keys())
def test_present_options_win_at_the_round_that_was_reached(
    before: tuple[Any, Any], now: tuple[Any, Any], kept: bool
) -> None:
    state = trained(fresh(*before), rounds=ROUNDS).state_dict()
    went_on = fresh(*now)
    said = "; ".join(went_on.load_state_dict(state))
    # The options are those of a run that had the present settings from the beginning.
    expected = trained(fresh(*now), rounds=ROUNDS, steps=False).state_dict()
    got = went_on.state_dict()
    assert got["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
    assert got.get("lr_scheduler") == expected.get("lr_scheduler")
    assert (got["settings"], got["rounds"]) == (expected["settings"], ROUNDS)
    moments, saved = got["optimizer"]["state"], state["optimizer"]["state"]
    if kept:
        assert all(torch.equal(moments[n][k], saved[n][k]) for n in saved for k in moments[n])
        assert moments.keys() == saved.keys()
        assert "anew" not in said
        assert "in the checkpoint" in said
    else:
        assert moments.keys() == fresh(*now).optimizer.state_dict()["state"].keys()
        assert not any(float(own["step"]) for own in moments.values())
        names = [each[0]["class_path"].rpartition(".")[2] for each in (before, now)]
        assert "begin anew" in said
        assert all(name in said for name in names)
    trained(went_on, rounds=2)  # and it does go on


@pytest.mark.parametrize(
    "same", [(ADAM, None), (ADAM, HALVED), (ADAM, ONE_CYCLE), (of("SGD", lr=0.1), HALVED)]
)
def test_without_a_change_every_bit_is_that_of_a_run_that_never_stopped(
    same: tuple[Any, Any],
) -> None:
    unbroken = trained(fresh(*same), rounds=ROUNDS + 2)
    first = trained(fresh(*same), rounds=ROUNDS)
    second = fresh(*same)
    for one, other in zip(
        second.optimizer.param_groups[0]["params"],
        first.optimizer.param_groups[0]["params"],
        strict=True,
    ):
        one.data.copy_(other.data)
    assert second.load_state_dict(first.state_dict()) == []
    trained(second, rounds=2)
    for one, other in zip(
        second.optimizer.param_groups[0]["params"],
        unbroken.optimizer.param_groups[0]["params"],
        strict=True,
    ):
        assert torch.equal(one, other)
    assert second.state_dict()["rounds"] == ROUNDS + 2


# In a run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["memory", pytest.param("disk", marks=pytest.mark.slow)])
def test_a_run_goes_on_with_other_settings_of_every_party(
    tiny: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture, store: str
) -> None:
    algorithm, values = FedAvg(steps=tiny.steps()), {"enable_checkpointing": True, "store": store}
    tiny.fit(algorithm, tmp_path, **values)
    folder = tmp_path / "tiny/version_0/checkpoints"
    first = {path: path.read_bytes() for path in folder.rglob("*0000.*")}
    edge = tiny.model(lr_scheduler=of("ExponentialLR", gamma=0.5))
    clients = dict(tiny.clients)
    clients["hall"] = type(clients["hall"])(["fourier"], optimizer=of("Adagrad", lr=0.02))
    settings = tiny.parties(
        clients, edge=edge, server=tiny.model(optimizer={"init_args": {"lr": 1e-3}})
    )
    trainer = tiny.trainer(tmp_path, max_rounds=2, allow_other_config=True, **values)
    trainer.fit(algorithm, tiny.data(), settings, ckpt_path="last")
    state = torch.load(folder / "round=0001.ckpt", weights_only=True)
    parties = {"server": state["server"]} | {
        name: torch.load(folder / "clients" / kept, weights_only=True)
        if isinstance(kept, str)
        else kept
        for name, kept in state["clients"].items()
    }
    rates = {k: v["optimizer"]["param_groups"][0]["lr"] for k, v in parties.items()}
    # After two rounds: of the present settings, the scheduler at its second halving.
    assert rates == pytest.approx(
        {"server": 1e-3, "kitchen": 2.5e-3, "study": 2.5e-3, "hall": 0.5e-2}
    )
    steps = {k: float(v["optimizer"]["state"][0]["step"]) for k, v in parties.items()}
    assert steps["kitchen"] == 2 * steps["hall"]  # moments of both rounds, of the last one alone
    lines = [r.message for r in caplog.records if r.message.startswith("ckpt_path: ")]
    assert len(lines) == 3
    by_party = {line.split(": ")[1]: line for line in lines}
    assert by_party.keys() == {"server", "hall", "kitchen, study"}
    assert "lr: 0.01 in the checkpoint, 0.001 now" in by_party["server"]
    assert "begin anew: AdamW in the checkpoint, Adagrad now" in by_party["hall"]
    assert "gamma: None in the checkpoint, 0.5 now" in by_party["kitchen, study"]
    if store == "memory":  # with states on disk, what was written for round 0 still says the same
        assert {path: path.read_bytes() for path in first} == first


@pytest.mark.parametrize(
    ("party", "scheduler", "rounds", "words"),
    [
        ("server", of("OneCycleLR", max_lr=0.1, total_steps=2), 3, ["server.", "total_steps 2"]),
        ("edge", of("OneCycleLR", max_lr=0.1, total_steps=4), 9, ["clients.kitchen.", "after 4"]),
        ("edge", of("OneCycleLR", max_lr=0.1, epochs=2, steps_per_epoch=2), 5, ["epochs 2"]),
    ],
)
def test_a_scheduler_that_ends_before_the_run_is_refused(
    tiny: SimpleNamespace,
    tmp_path: Path,
    party: str,
    scheduler: dict[str, Any],
    rounds: int,
    words: list[str],
) -> None:
    settings = tiny.parties(**{party: tiny.model(lr_scheduler=scheduler)})
    with pytest.raises(ConfigurationError) as caught:
        tiny.fit(FedAvg(), tmp_path, settings, max_rounds=rounds)
    for word in [*words, "lr_scheduler", f"trainer.max_rounds is {rounds}"]:
        assert word in str(caught.value)
    assert not (tmp_path / "tiny").exists()


def test_a_client_that_is_drawn_less_often_may_have_a_shorter_schedule(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    """With one client a round, nobody is drawn in each of four; going on further is refused."""
    short = of("OneCycleLR", max_lr=0.1, total_steps=3)
    settings = tiny.parties(edge=tiny.model(lr_scheduler=short))
    values = {"participation": Participation(0.3), "enable_checkpointing": True}
    algorithm = FedAvg(steps=tiny.steps())
    assert tiny.fit(algorithm, tmp_path, settings, max_rounds=2, **values)["rounds"] == 2
    trainer = tiny.trainer(tmp_path, max_rounds=30, **values)
    with pytest.raises(ConfigurationError, match=r"lr_scheduler: .* trainer\.max_rounds is 30"):
        trainer.fit(algorithm, tiny.data(), settings, ckpt_path="last")
