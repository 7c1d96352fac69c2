"""The study of ECLM with many devices: its data, its budgets, its tables, and a resumed run."""

import gc
import os
import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.eclm import many, tables
from benchmarks.eclm.devices import MACHINES, ManyDevices, budget_of, named
from mlecs_lightning import ECLM, FederatedTrainer
from mlecs_lightning.algorithms import Steps
from mlecs_lightning.algorithms.eclm.ability import AbilityTraining
from mlecs_lightning.algorithms.eclm.models import CloudParts, modular_of
from mlecs_lightning.callbacks import FederatedCallback
from mlecs_lightning.modules import EdgeModule
from mlecs_lightning.rounds import Interrupted, Participation
from mlecs_lightning.rounds.participation import sample_clients

NAMES = tuple(named(100))


@pytest.fixture(scope="module")
def data() -> ManyDevices:
    made = many.data_of(27, many.WHOLE)
    made.attach(dict.fromkeys(NAMES))  # type: ignore[arg-type]
    return made


def test_a_device_has_few_classes_and_half_of_its_data_is_replaced(data: ManyDevices) -> None:
    sizes = set()
    for name in NAMES[:20]:
        before, after = (data.private(name, round=r) for r in (0, many.WHOLE.rounds_per_step))
        assert len(before) == len(after)
        assert 50 <= len(before) <= 150
        assert set(before.labels.tolist()) <= set(data.classes_of(name, 0))
        assert len(set(data.classes_of(name, 0)) - set(data.classes_of(name, 1))) == 1
        kept = sum((Counter(before.ids) & Counter(after.ids)).values())
        assert kept >= len(before) - len(before) // 2
        assert after.ids != before.ids
        assert data.private(name, round=1).ids == before.ids
        sizes.add(len(before))
    assert len(sizes) > 5


def test_only_the_devices_of_a_round_are_judged_on_the_classes_they_hold(data: ManyDevices) -> None:
    drawn = sample_clients(NAMES, 0.1, seed=27, round=3)
    judged = {name: data.private(name, "val", round=3) for name in NAMES}
    assert tuple(name for name, table in judged.items() if len(table)) == drawn
    for name in drawn:
        own = data.private(name, round=3)
        assert set(judged[name].labels.tolist()) <= set(own.labels.tolist())
        assert set(judged[name].ids) <= set(data.pools.test.ids)
    # To choose settings: samples of the private pool that no device trains on.
    other = many.data_of(27, many.WHOLE, "val")
    other.attach(dict.fromkeys(NAMES))  # type: ignore[arg-type]
    held = {i for name in NAMES for i in other.private(name, "val").ids}
    assert not held & {i for name in NAMES for i in other.private(name, round=0).ids}
    assert not held & set(data.pools.test.ids)


def test_budgets_are_those_of_a_machine(data: ManyDevices) -> None:
    shares = {budget_of(name, modules=8).modules for name in NAMES}
    assert len(shares) == len(MACHINES)
    assert max(filter(None, shares)) == 1.0
    # Of the slowest: 32 of 1280 GFLOPS.
    assert min(filter(None, shares)) == pytest.approx((32 / 1280) ** 0.5)


def test_the_table_compares_with_no_adaptation_and_with_the_best_rival() -> None:
    scores = {"no adaptation": 0.5, "HeteroFL": 0.6, "FedAvg of adapters": 0.7, "ECLM": 0.8}
    sent = {"no adaptation": 1e6, "HeteroFL": 2e6, "FedAvg of adapters": 4e6, "ECLM": 2e6}
    rows: list[dict[str, Any]] = [
        {
            **{"kind": "many", "method": name, "seed": seed, "accuracy": score + seed / 100},
            "processor_seconds": 9.0,
            **{
                "modules": 6.0,
                "server": 0.9,
                "processor_seconds": 9.0,
                "commit": "abc",
                "hardware": "x",
            },
            **{"uplink_bytes": sent[name] / 2, "downlink_bytes": sent[name] / 2},
            "by_component": {"uplink": {"modules": 0.25e6}},
        }
        for name, score in scores.items()
        for seed in (1, 3)
    ]
    text = tables.blocks(rows)["devices"]
    # What is merged nowhere is not sent.
    assert (
        "| no adaptation | 0.520 ± 0.014 | 0.900 ± 0.000 | 6.0 | 0.75 MB | - | 5.33 | 2 |" in text
    )
    assert "| ECLM | 0.820 ± 0.014 | 0.900 ± 0.000 | 6.0 | 2.00 MB | - | 2.00 | 2 |" in text
    assert "minus the best rival, FedAvg of adapters" in text
    assert "| ECLM | +0.300 [+0.300, +0.300] | +0.100 [+0.100, +0.100] |" in text


def rows_after(algorithm: ECLM, root: Path) -> list[tuple[torch.Tensor, list[Any]]]:
    """Train two rounds; return the cloud's modules and the devices' masks after each."""
    size = replace(many.WHOLE, devices=3, fraction=1.0)
    seen: list[tuple[torch.Tensor, list[Any]]] = []

    class Look(FederatedCallback):
        def on_round_end(self, *, round: int, metrics: dict[str, float]) -> None:
            module = algorithm._server
            assigned = CloudParts.of(module).assigned.tolist()
            seen.append((modular_of(module).rows(), assigned))

    algorithm.steps = Steps(2, 0, 1, 0)
    trainer = FederatedTrainer(
        max_rounds=2,
        accelerator="cpu",
        devices=1,
        check_val_every_n_rounds=0,
        limit_test_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        logger=False,
        default_root_dir=root,
        callbacks=[Look()],
    )
    trainer.fit(algorithm, many.data_of(27, size), many.federation(27, size))
    return seen


@pytest.mark.slow
def test_rivals_differ_from_eclm_in_what_they_say(tmp_path: Path) -> None:
    size = replace(many.WHOLE, devices=3)

    def ran(name: str) -> list[tuple[torch.Tensor, list[Any]]]:
        algorithm = many.method(name, size)
        assert isinstance(algorithm, ECLM)
        return rows_after(algorithm, tmp_path / name.replace(" ", "-"))

    (one, _), (two, held) = ran("local adaptation")
    assert torch.equal(one, two)  # nothing is merged
    (one, _), (two, held) = ran("HeteroFL")
    assert not torch.equal(one, two)
    for device in held:
        for layer in device:  # the first neurons, as many as fit
            assert layer == sorted(layer, reverse=True)
        widths = [sum(layer) for layer in device]
        assert max(widths) - min(widths) <= 1
    _, (_, held) = ran("FedAvg of adapters")
    assert all(all(layer) for device in held for layer in device)


class Stop(FederatedCallback):
    """Ends a run by a signal in the middle of its second round."""

    served = 0

    def on_client_end(self, *, round: int, client: str, metrics: dict[str, float]) -> None:
        self.served += round == 1
        if self.served == 5:
            os.kill(os.getpid(), signal.SIGTERM)


class Alive(FederatedCallback):
    """Adds up the bytes of all tensors, and counts the devices' models, after each round."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.models: list[int] = []
        self._before = self._devices()  # other tests may have left some

    @staticmethod
    def _devices() -> int:
        gc.collect()
        return sum(issubclass(type(each), EdgeModule) for each in gc.get_objects())

    def on_round_end(self, *, round: int, metrics: Mapping[str, float]) -> None:
        self.models.append(self._devices() - self._before)
        # No subclasses: the fake tensors of an exported program have no memory.
        kinds = (torch.Tensor, torch.nn.Parameter)
        storages = [each.untyped_storage() for each in gc.get_objects() if type(each) in kinds]
        self.sizes.append(sum({each.data_ptr(): each.nbytes() for each in storages}.values()))


@pytest.mark.slow
def test_a_hundred_devices_resumed_in_the_middle_end_in_the_same_bits(tmp_path: Path) -> None:
    size = replace(many.WHOLE, rounds=3, rounds_per_step=2)

    def go(root: Path, ckpt_path: str | None = None, **options: Any) -> dict[str, Any]:
        algorithm = many.method("ECLM, stage 2", size)
        assert isinstance(algorithm, ECLM)
        algorithm.steps, algorithm.ability = Steps(2, 0, 1, 0), AbilityTraining(steps=2)
        trainer = FederatedTrainer(
            max_rounds=3,
            accelerator="cpu",
            devices=1,
            participation=Participation(fraction=0.1),
            store="disk",
            check_val_every_n_rounds=0,
            limit_test_batches=0,
            enable_progress_bar=False,
            logger=False,
            default_root_dir=root,
            name="many",
            **options,
        )
        trainer.fit(algorithm, many.data_of(27, size), many.federation(27, size), ckpt_path)
        folder = root / "many" / "version_0" / "checkpoints"
        state = torch.load(folder / "round=0002.ckpt", weights_only=True)
        # Those of devices that have not trained yet are not kept.
        state["clients"] = {
            name: torch.load(folder / "clients" / kept, weights_only=True)
            for name, kept in state["clients"].items()
        }
        return {k: v for k, v in state.items() if k != "seconds"}

    alive = Alive()
    unbroken = go(tmp_path / "unbroken", callbacks=[alive])
    # All devices share one model, and those that trained after round 0 have left no state.
    states = [state["model"].values() for state in unbroken["clients"].values()]
    smallest = min(sum(t.numel() * t.element_size() for t in state) for state in states)
    assert alive.models == [1, 1, 1]
    assert alive.sizes[2] - alive.sizes[0] < smallest
    with pytest.raises(Interrupted):
        go(tmp_path / "stopped", callbacks=[Stop()])
    resumed = go(tmp_path / "stopped", "last")
    assert len(unbroken["clients"]) <= 30
    assert unequal(unbroken, resumed) == []


def unequal(one: Any, other: Any, at: str = "") -> list[str]:  # noqa: ANN401 - nested states
    if isinstance(one, dict):
        odd = [f"{at}/{k}" for k in one.keys() ^ other.keys()]
        return odd + [d for k in one if k in other for d in unequal(one[k], other[k], f"{at}/{k}")]
    if isinstance(one, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for n, (a, b) in pairs for d in unequal(a, b, f"{at}/{n}")]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else repr(one) == repr(other)
    return [] if same else [at]
