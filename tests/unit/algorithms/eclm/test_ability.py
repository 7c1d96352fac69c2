"""ECLM's second stage: loads, masks and gate labels by hand and brute force; its training."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mlecs_lightning import ECLM
from mlecs_lightning.algorithms.eclm.ability import (
    AbilityTraining,
    assign_modules,
    gate_divergence,
    gate_labels,
    load_matrix,
    subtasks_of,
)
from mlecs_lightning.algorithms.eclm.models import CloudParts
from mlecs_lightning.clients import Federation
from mlecs_lightning.data import SampleTable
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.federated.warmup import ServerWarmup
from mlecs_lightning.rounds import RoundContext

CTX = RoundContext(-1, 0, ())

# Two sub-tasks, three modules, one layer.
H = torch.tensor([[[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]]])


def test_the_load_of_a_module_is_its_mean_gate_over_the_samples_of_a_sub_task() -> None:
    gates = torch.tensor([[0.4, 0.4, 0.2], [0.6, 0.2, 0.2], [0.6, 0.3, 0.1], [0.0, 0.0, 1.0]])
    loads = load_matrix(gates.unsqueeze(1), torch.tensor([0, 0, 1, -1]))
    torch.testing.assert_close(loads, H)


@pytest.mark.parametrize(
    ("module_load", "task_modules", "expected"),
    [
        (math.inf, 1, [[1, 0, 0], [1, 0, 0]]),  # both want the first
        (1.0, 1, [[0, 1, 0], [1, 0, 0]]),  # which cannot hold both: 0.3 + 0.6 > 0.5 + 0.3
        (0.55, 1, [[1, 0, 0], [0, 1, 0]]),  # nor the second task alone
        (math.inf, 2, [[1, 1, 0], [1, 1, 0]]),
        (1.0, 2, [[0, 1, 1], [1, 1, 0]]),
        (math.inf, 3, [[1, 1, 1], [1, 1, 1]]),
    ],
)
def test_masks_by_hand(module_load: float, task_modules: int, expected: list[list[int]]) -> None:
    mask = assign_modules(H, module_load=module_load, task_modules=task_modules)
    assert mask.int().tolist() == [expected]


def allowed(mask: Tensor, h: Tensor, module_load: float, task_modules: int) -> bool:
    held = mask.sum(dim=1)
    heaviest = float((h * mask).sum(dim=0).max())
    return bool(held.min() >= 1 and held.max() <= task_modules) and heaviest <= module_load + 1e-6


@pytest.mark.parametrize("seed", range(12))
def test_masks_are_the_best_of_all_that_keep_the_limits(seed: int) -> None:
    torch.manual_seed(seed)
    count, modules = ((2, 4), (3, 3))[seed % 2]
    loads = (2 * torch.randn(2, count, modules)).softmax(dim=-1)
    module_load = float(torch.empty(()).uniform_(0.2, 1.2)) * count / modules
    task_modules = 1 + seed % modules
    every = torch.tensor(list(itertools.product([0, 1], repeat=count * modules)))
    every = every.view(-1, count, modules)
    best = []
    for h in loads:
        fitting = [m for m in every if allowed(m, h, module_load, task_modules)]
        best.append(max((float((h * m).sum()) for m in fitting), default=None))
    if None in best:
        with pytest.raises(ConfigurationError, match="the least feasible value"):
            assign_modules(loads, module_load=module_load, task_modules=task_modules)
        return
    masks = assign_modules(loads, module_load=module_load, task_modules=task_modules)
    for h, mask, value in zip(loads, masks, best, strict=True):
        assert allowed(mask.int(), h, module_load, task_modules)
        assert float((h * mask).sum()) >= value * (1 - 1e-3)


def test_an_infeasible_load_is_said_with_the_least_feasible_one() -> None:
    # Whatever the two tasks choose, some module has 0.3 or more: 0.45 of the mean load 2 / 3.
    with pytest.raises(ConfigurationError) as caught:
        assign_modules(H, module_load=0.1, task_modules=1)
    assert str(caught.value) == (
        "algorithm.init_args.ability.module_load: 0.15 leaves a sub-task without a module; the "
        "least feasible value is 0.45"
    )
    assign_modules(H, module_load=0.45 * 2 / 3, task_modules=1)


def test_labels_and_divergence_by_hand() -> None:
    labels = gate_labels(H, torch.tensor([[[True, True, False], [True, False, False]]]))
    torch.testing.assert_close(labels, torch.tensor([[[0.625, 0.375, 0.0], [1.0, 0.0, 0.0]]]))
    p = torch.tensor([[[0.5, 0.25, 0.25]], [[0.2, 0.4, 0.4]], [[0.1, 0.1, 0.8]]])
    of_samples = labels[:, [0, 1, 1]].transpose(0, 1)
    found = gate_divergence(p.log(), of_samples, torch.tensor([True, True, False]))
    first = 0.625 * math.log(0.625 / 0.5) + 0.375 * math.log(0.375 / 0.25)
    assert float(found) == pytest.approx((first + math.log(1 / 0.2)) / 2, rel=1e-6)
    nobody = gate_divergence(p.log(), of_samples, torch.zeros(3, dtype=torch.bool))
    assert float(nobody) == 0.0


def test_without_limits_the_label_is_the_mean_gate() -> None:
    gates = torch.rand(20, 2, 4).softmax(dim=-1)
    tasks = torch.arange(20) % 3
    free = AbilityTraining(task_modules=4, module_load=None)
    torch.testing.assert_close(free.labels_of(gates, tasks), load_matrix(gates, tasks))
    # By default a quarter of the modules: one of four.
    assert (AbilityTraining(module_load=None).labels_of(gates, tasks) > 0).sum(dim=-1).eq(1).all()


def test_sub_tasks_are_classes_with_a_known_target_or_domains(tiny: SimpleNamespace) -> None:
    table = tiny.data().public().select(range(30))
    hidden = table.with_targets({table.ids[0]: ""})
    tasks = subtasks_of(hidden, "classes")
    assert tasks[0] == -1
    names = sorted(set(hidden.labels[1:].tolist()))
    assert [names[t] for t in tasks[1:].tolist()] == hidden.labels[1:].tolist()
    domains = sorted(set(table.domains))
    assert [domains[t] for t in subtasks_of(hidden, "domains").tolist()] == list(table.domains)
    silent = table.with_targets(dict.fromkeys(table.ids, ""))
    with pytest.raises(ConfigurationError, match=r"ability\.subtasks: none of the public samples"):
        subtasks_of(silent, "classes")
    with pytest.raises(ConfigurationError, match="known class_mixes"):
        subtasks_of(silent, "class_mixes")


def test_domains_with_like_classes_are_one_sub_task() -> None:
    # Classes of the samples of each domain; "d" has no targets, one sample no domain.
    held = {"a": [0, 0, 0, 1], "b": [2, 2, 1, 2], "c": [0, 0, 0, 0, 1], "d": [0, 0], "": [2]}
    domains = [name for name, labels in held.items() for _ in labels]
    labels = torch.tensor([label for labels in held.values() for label in labels])
    table = SampleTable(
        ids=tuple(map(str, range(len(domains)))),
        modalities=(),
        inputs={},
        present=torch.zeros(len(domains), 0, dtype=torch.bool),
        instructions=("?",) * len(domains),
        targets=tuple("" if name == "d" else "x" for name in domains),
        labels=labels,
        domains=tuple(domains),
        groups=tuple(domains),
    )
    two = {"a": 0, "b": 1, "c": 0, "d": -1, "": -1}
    assert subtasks_of(table, "class_mixes", mixes=2).tolist() == [two[name] for name in domains]
    # As many groups as there are different mixes, whatever is asked for.
    each = subtasks_of(table, "class_mixes", mixes=9).tolist()
    assert len(set(each)) == 4
    assert set(subtasks_of(table, "class_mixes", mixes=1).tolist()) == {0, -1}
    nowhere = replace(table, domains=("",) * len(table))
    with pytest.raises(
        ConfigurationError, match="none of the public samples has known class_mixes"
    ):
        subtasks_of(nowhere, "class_mixes")


def test_settings_out_of_range_are_named_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        AbilityTraining(steps=0, weight=-1.0, mixes=0, task_modules=0, module_load=0.0)
    keys = [line.split(" ")[0].rpartition(".")[2] for line in str(caught.value).splitlines()]
    assert keys == ["steps", "weight", "mixes", "task_modules", "module_load"]


# Training -----------------------------------------------------------------------------------------


def trained(
    tiny: SimpleNamespace, settings: Federation, algorithm: ECLM, *, by_hand: bool = False
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Take the second stage from fresh weights; or, by hand, L_LM of the first stage alone."""
    data = tiny.data()
    server, loaders = tiny.build(algorithm, settings, data).server, tiny.loaders(data)
    torch.manual_seed(3)
    if by_hand:
        plain = replace(algorithm.offline, balance_weight=0.0)
        seed = CTX.seed_for("server", "ability")
        losses = server.fit(loaders.public.take(2, seed=seed), plain.loss, stage="ability")
    else:
        losses = algorithm.after_warmup(server, loaders, CTX)
    return server.module.trainable_state(), losses


@pytest.mark.slow
def test_without_weight_and_mask_the_stage_is_plain_fine_tuning(
    tiny: SimpleNamespace,
    divided: Callable[..., Federation],
    eclm: Callable[..., ECLM],
) -> None:
    free = AbilityTraining(steps=2, weight=0.0, task_modules=4, module_load=None)
    stage, losses = trained(tiny, divided(), eclm(ability=free))
    plain, expected = trained(tiny, divided(), eclm(), by_hand=True)
    assert [name for name in plain if not torch.equal(plain[name], stage[name])] == []
    assert losses["ability/lm"] == expected["ability/lm"]


def test_the_loss_by_hand(
    tiny: SimpleNamespace,
    divided: Callable[..., Federation],
    eclm: Callable[..., ECLM],
) -> None:
    ability, data = AbilityTraining(weight=0.5, task_modules=2), tiny.data()
    algorithm = eclm(active=4)
    server = tiny.build(algorithm, divided(), data).server
    stage = ability.prepare(server, data.public(), algorithm.offline)
    batch = data.public().__getitems__(list(range(6)))
    losses = stage.loss(server.module.eval(), batch)
    expected = server.module.read(batch, tower="slm").loss  # all modules on
    torch.testing.assert_close(losses["lm"], expected, rtol=1e-5, atol=1e-6)
    p = CloudParts.measure(server.module, batch)
    tasks = subtasks_of(data.public(), "classes")[:6]
    label = stage.labels.transpose(0, 1)[tasks]
    terms = torch.where(label > 0, label * (label.clamp(min=1e-9) / p).log(), 0.0)
    torch.testing.assert_close(losses["gates"], terms.sum(-1).mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["loss"], losses["lm"] + 0.5 * losses["gates"])


@pytest.mark.slow
def test_the_stage_follows_a_loaded_warm_up_as_it_does_one_of_its_own(
    tiny: SimpleNamespace,
    divided: Callable[..., Federation],
    eclm: Callable[..., ECLM],
    tmp_path: Path,
) -> None:
    values = {"ability": AbilityTraining(steps=2), "steps": tiny.steps(warmup=3, server=0)}
    options = {"default_root_dir": str(tmp_path), "accelerator": "cpu", "devices": 1}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    path = ServerWarmup({**options, **quiet}).warmup(eclm(**values), tiny.data(), divided())
    states = []
    for name, warm in (("own", None), ("loaded", str(path))):
        trainer = tiny.trainer(
            tmp_path, name=name, enable_checkpointing=True, warmup_ckpt_path=warm
        )
        trainer.fit(eclm(**values), tiny.data(), divided())
        found = sorted((tmp_path / name / "version_0" / "checkpoints").glob("round=*.ckpt"))
        states.append(torch.load(found[-1], weights_only=True))
    own, loaded = states
    assert own["warmup"]["server/ability/loss"] == loaded["warmup"]["server/ability/loss"]
    for name, value in own["server"]["model"].items():
        assert torch.equal(value, loaded["server"]["model"][name]), name
