import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch import Tensor

from mlecs_lightning.algorithms import FedAvg
from mlecs_lightning.data import SampleTable
from mlecs_lightning.modules import EdgeModule, Losses
from mlecs_lightning.rounds import EdgeLearner, Learner, NonFiniteError
from mlecs_lightning.types import Batch


@pytest.fixture(scope="module")
def table(tiny: SimpleNamespace) -> SampleTable:
    return tiny.data().public(modalities=["profile"])


@pytest.fixture
def learner(tiny: SimpleNamespace) -> Callable[..., EdgeLearner]:
    """Factory of a fresh edge, the same each time but for the optimiser and the clipping."""

    def build(lr: float = 0.1, *, optimizer: str = "SGD", clip: float | None = None) -> EdgeLearner:
        torch.manual_seed(0)
        settings = tiny.model(
            backbone={"model": tiny.pocket()},
            optimizer={"class_path": optimizer, "init_args": {"lr": lr}},
        )
        module = EdgeModule(settings, {"profile": tiny.data().modalities["profile"]})
        fabric = Fabric(accelerator="cpu", devices=1)
        return Learner("hall", module, fabric=fabric, gradient_clip_val=clip, sync=False)

    return build


def batches(table: SampleTable, *sizes: int) -> list[Batch]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [
        table.__getitems__(list(range(end - size, end)))
        for end, size in zip(ends, sizes, strict=True)
    ]


def linear(module: EdgeModule, batch: Batch) -> Losses:
    """A loss whose gradient is known: 10 for every weight of the readout."""
    return {"loss": 10 * module.tower().readout.weight.sum() + len(batch.ids)}


def test_a_step_is_taken_for_each_batch(
    learner: Callable[..., EdgeLearner], table: SampleTable
) -> None:
    edge = learner(lr=0.25)
    before = edge.module.tower().readout.weight.detach().clone()
    edge.fit(batches(table, 2, 2, 2), linear, stage="s")
    moved = edge.module.tower().readout.weight.detach() - before
    torch.testing.assert_close(moved, torch.full_like(moved, -0.25 * 10 * 3))


def test_clipping_bounds_the_whole_gradient(
    learner: Callable[..., EdgeLearner], table: SampleTable
) -> None:
    edge = learner(lr=1.0, clip=0.5)
    before = edge.module.tower().readout.weight.detach().clone()
    edge.fit(batches(table, 2), linear, stage="s")
    moved = edge.module.tower().readout.weight.detach() - before
    assert float(moved.norm()) == pytest.approx(0.5, rel=1e-4)


def test_losses_are_means_over_the_pass_under_the_name_of_its_stage(
    learner: Callable[..., EdgeLearner], table: SampleTable
) -> None:
    def sizes(module: EdgeModule, batch: Batch) -> Losses:
        count = torch.tensor(float(len(batch.ids)))
        return {"loss": 0 * module.tower().readout.weight.sum() + count, "twice": 2 * count}

    assert learner().fit(batches(table, 1, 2, 6), sizes, stage="public") == {
        "public/loss": 3.0,
        "public/twice": 6.0,
    }


@pytest.mark.parametrize("first", [2, 6])
def test_a_part_of_a_loss_may_be_missing_in_some_batches(
    learner: Callable[..., EdgeLearner], table: SampleTable, first: int
) -> None:
    def sizes(module: EdgeModule, batch: Batch) -> Losses:
        count = torch.tensor(float(len(batch.ids)))
        part = {"part": 3 * count} if len(batch.ids) == 6 else {}
        return {"loss": 0 * module.tower().readout.weight.sum() + count, **part}

    both = batches(table, first, 8 - first)
    assert learner().fit(both, sizes, stage="s") == {"s/loss": 4.0, "s/part": 18.0}


def test_without_batches_nothing_changes(learner: Callable[..., EdgeLearner]) -> None:
    edge = learner()
    before = edge.module.trainable_state()
    assert edge.fit([], stage="s") == {}
    after = edge.module.trainable_state()
    assert all(torch.equal(after[k], t) for k, t in before.items())


def test_default_objective_is_the_language_model_loss(
    learner: Callable[..., EdgeLearner], table: SampleTable
) -> None:
    edge = learner(lr=0.0)
    (batch,) = batches(table, 4)
    expected = edge.module.read(batch).loss.item()
    assert edge.fit([batch], stage="s") == {"s/loss": pytest.approx(expected, rel=1e-6)}


def test_held_out_loss_is_weighted_by_the_size_of_the_batches(
    learner: Callable[..., EdgeLearner], table: SampleTable
) -> None:
    edge = learner()
    small, large = batches(table, 2, 6)
    with torch.no_grad():
        parts = [float(edge.module(b)["loss"]) for b in (small, large)]
    expected = (2 * parts[0] + 6 * parts[1]) / 8
    assert edge.loss([small, large]) == pytest.approx(expected, rel=1e-6)
    assert math.isnan(edge.loss([]))


def test_training_trains_and_evaluation_does_not(
    learner: Callable[..., EdgeLearner], table: SampleTable
) -> None:
    edge = learner()
    modes: list[tuple[bool, bool]] = []

    def note(module: EdgeModule, batch: Batch) -> Losses:
        modes.append((module.training, torch.is_grad_enabled()))
        return linear(module, batch)

    def look(module: EdgeModule, batch: Batch) -> Tensor:
        modes.append((module.training, torch.is_grad_enabled()))
        return batch.present

    edge.loss(batches(table, 2))
    edge.fit(batches(table, 2), note, stage="s")
    assert [t.tolist() for t in edge.map(batches(table, 1, 1), look)] == [[[True]], [[True]]]
    assert modes == [(True, True), (False, False), (False, False)]


def test_predictions_carry_id_and_target_in_order(
    learner: Callable[..., EdgeLearner], table: SampleTable
) -> None:
    rows = learner().predict(batches(table, 2, 1))
    assert [(r["id"], r["target"]) for r in rows] == list(
        zip(table.ids[:3], table.targets[:3], strict=True)
    )
    assert all(isinstance(r["prediction"], str) and len(r) == 3 for r in rows)


# Not finite -----------------------------------------------------------------------------------


def test_infinite_input_is_named(learner: Callable[..., EdgeLearner], table: SampleTable) -> None:
    good, bad = batches(table, 2, 2)
    bad.inputs["profile"][0, 0] = math.inf
    with pytest.raises(NonFiniteError, match=r"hall: loss is nan in step 1 of stage 'private'"):
        learner(lr=0.0).fit([good, bad], stage="private")


def test_weights_out_of_range_are_named(
    learner: Callable[..., EdgeLearner], table: SampleTable
) -> None:
    """The loss of the only step is finite; what it leaves behind is not."""
    with pytest.raises(NonFiniteError, match="hall: weights are not finite after stage 'ccl'"):
        learner(lr=1e38).fit(batches(table, 2), linear, stage="ccl")


def test_a_rate_far_too_large_is_a_fault_of_the_client(
    learner: Callable[..., EdgeLearner], table: SampleTable
) -> None:
    with pytest.raises(NonFiniteError, match=r"hall: .* stage 'private'"):
        learner(lr=1e30, optimizer="AdamW").fit(batches(table, 2, 2), stage="private")


# State ----------------------------------------------------------------------------------------


def test_a_restored_learner_goes_on_in_the_same_bits(
    learner: Callable[..., EdgeLearner], table: SampleTable
) -> None:
    first, second, third = batches(table, 4, 4, 4)
    one, other = learner(optimizer="AdamW"), learner(optimizer="AdamW")
    one.fit([first], stage="s")
    state = one.state_dict()
    one.fit([second], stage="s")
    other.fit([third], stage="s")  # moments of its own, which must go
    other.load_state_dict(state)
    other.fit([second], stage="s")
    mine, its = one.state_dict(), other.state_dict()
    assert all(torch.equal(its["model"][k], t) for k, t in mine["model"].items())
    for index, moments in mine["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(its["optimizer"]["state"][index][name], value)


def test_a_state_taken_does_not_change_with_further_training(
    learner: Callable[..., EdgeLearner], table: SampleTable
) -> None:
    edge = learner(optimizer="AdamW")
    edge.fit(batches(table, 4), stage="s")
    taken, copy = edge.state_dict(), edge.state_dict()
    edge.fit(batches(table, 4, 4), stage="s")
    assert all(torch.equal(taken["model"][k], t) for k, t in copy["model"].items())
    moments = copy["optimizer"]["state"]
    assert all(
        torch.equal(taken["optimizer"]["state"][i]["exp_avg"], m["exp_avg"])
        for i, m in moments.items()
    )
    # Weight and bias of the readout, which L_LM does not read, have none.
    assert len(moments) == len(edge.module.trainable_parameters()) - 2


def test_a_stored_state_does_not_change_while_its_client_trains(
    learner: Callable[..., EdgeLearner], table: SampleTable
) -> None:
    """A client that fails half-way must not leave half a step in the store."""
    edge = learner(optimizer="AdamW")
    edge.fit(batches(table, 4), stage="s")
    stored = edge.state_dict()
    copy = {i: m["exp_avg"].clone() for i, m in stored["optimizer"]["state"].items()}
    edge.load_state_dict(stored)
    edge.fit(batches(table, 4, 4), stage="s")
    kept = stored["optimizer"]["state"]
    assert all(torch.equal(kept[i]["exp_avg"], m) for i, m in copy.items())


def test_server_trains_through_fabric_and_an_edge_does_not(tiny: SimpleNamespace) -> None:
    federation = tiny.build(FedAvg())
    assert federation.server._wrapped is not None
    assert federation.edge("hall")._wrapped is None


# Learning rate --------------------------------------------------------------------------------


def rates(tiny: SimpleNamespace, root: Path, number: int) -> dict[str, float]:
    path = root / f"tiny/version_0/checkpoints/round={number:04d}.ckpt"
    state = torch.load(path, weights_only=True)
    parties = {"server": state["server"], **state["clients"]}
    return {k: v["optimizer"]["param_groups"][0]["lr"] for k, v in parties.items()}


@pytest.mark.slow
def test_rates_follow_the_rounds_that_a_party_took_part_in(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    """A quarter of the base rate is left after two halvings; one client halves alone."""
    half = {"class_path": "ExponentialLR", "init_args": {"gamma": 0.5}}
    tenth = {"class_path": "ExponentialLR", "init_args": {"gamma": 0.1}}
    model = tiny.model(lr_scheduler=half)
    clients = dict(tiny.clients)
    clients["hall"] = replace(clients["hall"], lr_scheduler=tenth)
    settings = tiny.parties(clients, edge=model)
    values = {"max_rounds": 2, "enable_checkpointing": True}
    tiny.fit(FedAvg(steps=tiny.steps()), tmp_path, settings, **values)
    assert rates(tiny, tmp_path, 1) == pytest.approx(
        {"server": 1e-2, "kitchen": 2.5e-3, "study": 2.5e-3, "hall": 1e-4}
    )


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_rates(tiny: SimpleNamespace, tmp_path: Path) -> None:
    cosine = {"class_path": "CosineAnnealingLR", "init_args": {"T_max": 3}}
    model = tiny.model(lr_scheduler=cosine)
    settings = tiny.parties(edge=model, server=model)
    values = {"enable_checkpointing": True}
    algorithm = FedAvg(steps=tiny.steps())
    tiny.fit(algorithm, tmp_path / "whole", settings, max_rounds=3, **values)
    tiny.fit(algorithm, tmp_path / "part", settings, max_rounds=1, **values)
    trainer = tiny.trainer(tmp_path / "part", max_rounds=3, **values)
    trainer.fit(algorithm, tiny.data(), settings, ckpt_path="last")
    states = [
        torch.load(
            tmp_path / name / "tiny/version_0/checkpoints/round=0002.ckpt", weights_only=True
        )
        for name in ("whole", "part")
    ]
    for party in (lambda s: s["server"], lambda s: s["clients"]["hall"]):
        whole, part = (party(state) for state in states)
        assert all(torch.equal(t, part["model"][k]) for k, t in whole["model"].items())
    assert rates(tiny, tmp_path / "whole", 0)["hall"] == pytest.approx(0.75e-2)
    assert rates(tiny, tmp_path / "part", 2)["hall"] == pytest.approx(0.0, abs=1e-9)


def test_a_step_that_failed_leaves_no_gradient_to_the_next_client(
    learner: Callable[..., EdgeLearner], table: SampleTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    edge = learner(lr=1.0)
    state, weight = edge.state_dict(), edge.module.tower().readout.weight
    with monkeypatch.context() as patch:
        patch.setattr(edge.optimizer.optimizer, "step", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            edge.fit(batches(table, 2), linear, stage="s")
    edge.load_state_dict(state)
    before = weight.detach().clone()
    edge.fit(batches(table, 2), linear, stage="s")
    torch.testing.assert_close(weight.detach() - before, torch.full_like(before, -10.0))


def test_an_overflow_of_one_party_leaves_the_scale_of_another(
    learner: Callable[..., EdgeLearner], table: SampleTable
) -> None:
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[precision])
    module = learner().module
    one, two = (
        Learner(name, module, fabric=fabric, gradient_clip_val=None, sync=False) for name in "ab"
    )

    def overflow(module: EdgeModule, batch: Batch) -> Losses:
        return {"loss": (0 * module.tower().readout.weight.sum()).sqrt()}  # its gradient is NaN

    fresh = one.state_dict()["scaler"]["scale"]
    one.fit(batches(table, 2), overflow, stage="s")
    two.fit(batches(table, 2), linear, stage="s")
    assert one.state_dict()["scaler"]["scale"] == fresh / 2
    assert two.state_dict()["scaler"]["scale"] == fresh
    two.load_state_dict(one.state_dict())
    assert two.state_dict()["scaler"]["scale"] == fresh / 2


def test_the_server_reads_its_inputs_as_they_are_in_mixed_precision(
    learner: Callable[..., EdgeLearner], table: SampleTable
) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    wrapped = Learner("server", learner().module, fabric=fabric, gradient_clip_val=None, sync=True)
    seen = set[torch.dtype]()

    @dataclass(frozen=True)
    class Objective:
        def __call__(self, module: EdgeModule, batch: Batch) -> Losses:
            seen.update(column.dtype for column in batch.inputs.values())
            return {"loss": module.mean_loss(module.read(batch))}

    wrapped.fit(batches(table, 2), Objective(), stage="s")
    assert seen == {torch.float32}
