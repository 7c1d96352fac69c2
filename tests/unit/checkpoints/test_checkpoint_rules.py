"""Which checkpoints stay, which one is meant, and for which configuration."""

import re
import shutil
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlecs_lightning import MLECS, FederatedTrainer
from mlecs_lightning.callbacks.monitor import Monitor, MonitorMode
from mlecs_lightning.checkpoints.checkpoint import (
    CheckpointError,
    check_config,
    find_checkpoint,
    save_checkpoint,
)
from mlecs_lightning.checkpoints.timeline import prune_checkpoints
from mlecs_lightning.rounds import FailureTrace, Participation, UpdateLimits
from mlecs_lightning.storage.files import save_tensors
from mlecs_lightning.wire import DWC, MessageLimits

LOSSES = [0.5, 0.2, float("nan"), 0.3, 0.4]
HISTORY = [{"round": r, "clients/val/loss": loss} for r, loss in enumerate(LOSSES)]


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.ckpt"))


@pytest.mark.parametrize(
    ("top", "mode", "kept"),
    [
        (-1, "min", [0, 1, 2, 3, 4]),
        (0, "min", [4]),
        (1, "min", [1, 4]),
        (2, "min", [1, 3, 4]),
        (4, "min", [0, 1, 3, 4]),
        (1, "max", [0, 4]),
        (2, "max", [0, 4]),
        (3, "max", [0, 3, 4]),
    ],
)
def test_the_newest_and_the_k_best_stay(
    tmp_path: Path, top: int, mode: MonitorMode, kept: list[int]
) -> None:
    folder, monitor = tmp_path / "version_0" / "checkpoints", Monitor("clients/val/loss", mode)
    for number in range(5):
        state = {"history": HISTORY, "monitor": monitor.name, "monitor_mode": mode}
        save_checkpoint(folder, state, round=number)
    partial = save_checkpoint(folder, {"partial": {}}, round=5, complete=False)
    assert prune_checkpoints(folder, HISTORY, monitor=monitor, save_top_k=top) == kept
    assert written(folder) == [*(f"round={n:04d}.ckpt" for n in kept), partial.name]
    assert find_checkpoint("last", run_root=tmp_path) == partial
    best = {"min": 1, "max": 0}[mode] if top else 4
    assert find_checkpoint("best", run_root=tmp_path).name == f"round={best:04d}.ckpt"


def test_the_newest_and_the_best_is_what_stays_by_default(tmp_path: Path) -> None:
    default = signature(FederatedTrainer).parameters["save_top_k"].default
    for number in range(5):
        save_checkpoint(tmp_path, {}, round=number)
        history, monitor = HISTORY[: number + 1], Monitor("clients/val/loss")
        prune_checkpoints(tmp_path, history, monitor=monitor, save_top_k=default)
        assert len(written(tmp_path)) <= 2, "disk use does not grow with the rounds"
    assert written(tmp_path) == ["round=0001.ckpt", "round=0004.ckpt"]


def test_a_partial_checkpoint_is_the_last_until_its_round_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "version_0" / "checkpoints"
    save_checkpoint(folder, {"history": HISTORY, "monitor": "clients/val/loss"}, round=0)
    partial = save_checkpoint(folder, {}, round=1, complete=False)
    assert find_checkpoint("last", run_root=tmp_path) == partial
    assert find_checkpoint("best", run_root=tmp_path).name == "round=0000.ckpt"
    save_checkpoint(folder, {}, round=1)
    assert find_checkpoint("last", run_root=tmp_path).name == "round=0001.ckpt"
    assert not partial.exists()


def test_save_top_k_leaves_checkpoints_that_still_can_be_loaded(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    """With states on disk: the files that the kept rounds need stay, the others go."""
    options = {"enable_checkpointing": True, "save_top_k": 0, "store": "disk", "max_rounds": 3}
    algorithm = MLECS(steps=tiny.steps())
    tiny.fit(algorithm, tmp_path, participation=Participation(0.34), **options)
    folder = tmp_path / "tiny" / "version_0" / "checkpoints"
    assert written(folder) == ["round=0002.ckpt"]
    states = sorted(p.name for p in (folder / "clients").glob("*.pt"))
    assert len(states) == len({name.split("@")[0] for name in states})  # one for each client
    summary = tiny.trainer(tmp_path).test(algorithm, tiny.data(), tiny.parties(), "last")
    assert summary["rounds"] == 3


ALGORITHM = {"class_path": "MLECS", "init_args": {"temperature": 0.1, "steps": {"server": 4}}}
CONFIG = {
    "seed_everything": 7,
    "trainer": {"max_rounds": 2, "precision": "32-true", "devices": 1},
    "algorithm": ALGORITHM,
    "clients": {"hall": {"modalities": ["rgb"]}},
}


def changed(**parts: object) -> dict[str, object]:
    return {**CONFIG, **parts}


def test_what_differs_is_named_with_both_values() -> None:
    present = changed(
        seed_everything=8,
        algorithm={
            "class_path": "MLECS",
            "init_args": {"temperature": 0.2, "steps": {"server": 4}},
        },
        clients={"hall": {"modalities": ["rgb", "acc"]}},
    )
    with pytest.raises(CheckpointError) as caught:
        check_config(CONFIG, present)
    assert str(caught.value).splitlines()[1:] == [
        "algorithm.init_args.temperature: 0.1 in the checkpoint, 0.2 now",
        "clients.hall.modalities: ['rgb'] in the checkpoint, ['rgb', 'acc'] now",
        "seed_everything: 7 in the checkpoint, 8 now",
    ]


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"trainer": {"max_rounds": 9, "precision": "32-true", "devices": 2, "store": "disk"}},
        {"ckpt_path": "last"},
        {"warmup": {"max_steps": 3}},
    ],
)
def test_how_far_and_where_may_differ(parts: dict[str, object]) -> None:
    check_config(CONFIG, changed(**parts))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"optimizer": {"init_args": {"lr": 1e-3}}}, "optimizer.init_args.lr: 0.01 in the"),
        ({"lora": {"alpha": 8}}, "lora.alpha: 4 in the checkpoint, 8 now"),
        ({"max_new_tokens": 3}, "max_new_tokens: 2 in the checkpoint, 3 now"),
    ],
)
@pytest.mark.parametrize("party", ["server", "edge"])
def test_without_a_configuration_the_parties_say_what_differs(
    tiny: SimpleNamespace,
    mlecs_run: SimpleNamespace,
    tmp_path: Path,
    party: str,
    values: dict[str, object],
    key: str,
) -> None:
    trainer = tiny.trainer(tmp_path, max_rounds=2)
    checkpoint = str(mlecs_run.folder / "checkpoints" / "round=0001.ckpt")
    settings = tiny.parties(**{party: tiny.model(**values)})
    named = "server." if party == "server" else "clients.hall.settings."
    with pytest.raises(CheckpointError, match=re.escape(named + key)):
        trainer.fit(mlecs_run.algorithm, tiny.data(), settings, checkpoint)
    assert not (tmp_path / "tiny").exists() or list((tmp_path / "tiny").iterdir()) == []


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"gradient_clip_val": 0.5}, "trainer.gradient_clip_val: 1.0 in the checkpoint, 0.5 now"),
        ({"limit_train_batches": 3}, "trainer.limit_train_batches: None in the checkpoint, 3 now"),
        (
            {"participation": Participation(0.5)},
            "trainer.participation.fraction: 1.0 in the checkpoint, 0.5 now",
        ),
        (
            {"faults": FailureTrace(crash_rate=0.1)},
            "trainer.faults.crash_rate: None in the checkpoint, 0.1 now",
        ),
        (
            {"update_limits": UpdateLimits(on_excess="clip")},
            "trainer.update_limits.on_excess: 'refuse' in the checkpoint, 'clip' now",
        ),
        (
            {"message_limits": MessageLimits(max_norm=1e9)},
            "trainer.message_limits.max_norm: None in the checkpoint, 1000000000.0 now",
        ),
        ({"codec": DWC(bits=8)}, "trainer.codec.init_args.bits: None in the checkpoint, 8 now"),
    ],
)
def test_without_a_configuration_the_trainer_says_what_differs(
    tiny: SimpleNamespace,
    mlecs_run: SimpleNamespace,
    tmp_path: Path,
    values: dict[str, object],
    line: str,
) -> None:
    checkpoint = str(mlecs_run.folder / "checkpoints" / "round=0001.ckpt")
    trainer = tiny.trainer(tmp_path, max_rounds=2, **values)
    with pytest.raises(CheckpointError) as caught:
        trainer.fit(mlecs_run.algorithm, tiny.data(), tiny.parties(), checkpoint)
    assert line in str(caught.value).splitlines()


def test_without_a_configuration_algorithm_and_data_say_what_differs(
    tiny: SimpleNamespace, mlecs_run: SimpleNamespace, tmp_path: Path
) -> None:
    checkpoint = str(mlecs_run.folder / "checkpoints" / "round=0001.ckpt")
    algorithm = MLECS(steps=tiny.steps(warmup=1, public=3), temperature=0.2)
    data = tiny.data(sample_rate=0.5, num_workers=1)  # of these the second changes nothing
    with pytest.raises(CheckpointError) as caught:
        tiny.trainer(tmp_path, max_rounds=2).fit(algorithm, data, tiny.parties(), checkpoint)
    assert str(caught.value).splitlines()[1:] == [
        "algorithm.init_args.steps.public: 2 in the checkpoint, 3 now",
        "algorithm.init_args.temperature: 0.1 in the checkpoint, 0.2 now",
        "data.init_args.sample_rate: 1.0 in the checkpoint, 0.5 now",
    ]


def test_what_cannot_be_compared_is_told(
    tiny: SimpleNamespace,
    mlecs_run: SimpleNamespace,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A checkpoint of a version that did not note the arguments."""
    path = tmp_path / "round=0001.ckpt"
    state = torch.load(mlecs_run.folder / "checkpoints" / path.name, weights_only=True)
    del state["about"]["arguments"]
    save_tensors(path, state)
    trainer = tiny.trainer(tmp_path, max_rounds=2, gradient_clip_val=0.5)
    with caplog.at_level("INFO"):
        trainer.fit(mlecs_run.algorithm, tiny.data(), tiny.parties(), str(path))
    assert "not compared with the checkpoint: the arguments of trainer, algorithm and" in (
        caplog.text
    )


def test_a_configuration_of_an_earlier_version_is_compared_under_the_present_keys() -> None:
    saved = changed(trainer={"client_fraction": 0.5, "max_message_bytes": 9})
    check_config(saved, changed(trainer={"participation": {"fraction": 0.5}}))
    with pytest.raises(CheckpointError, match=r"participation\.fraction: 0\.5 in the ch.*, 1"):
        check_config(saved, changed(trainer={"participation": {"fraction": 1.0}}))


@pytest.mark.parametrize("path", ["mlecs_lightning.Digits", "Digits"])
def test_an_argument_that_an_earlier_version_lacked_had_its_default(path: str) -> None:
    saved = {"data": {"class_path": path, "init_args": {"alpha": 0.3}}}

    def present(**values: object) -> dict[str, Any]:
        return {"data": {"class_path": path, "init_args": {"alpha": 0.3, **values}}}

    check_config(saved, present(public_labelled=1.0, sample_rate=1.0, schedule=None))
    with pytest.raises(CheckpointError, match=r"public_labelled: 1.0 in the checkpoint, 0.5 now"):
        check_config(saved, present(public_labelled=0.5))
    with pytest.raises(CheckpointError, match=r"invented: None in the checkpoint, 1 now"):
        check_config(saved, present(invented=1))


def test_arguments_of_a_class_that_cannot_be_found_are_compared_as_they_are() -> None:
    saved = {"algorithm": {"class_path": "mine.Own", "init_args": {}}}
    with pytest.raises(CheckpointError, match=r"rate: None in the checkpoint, 2 now"):
        check_config(saved, {"algorithm": {"class_path": "mine.Own", "init_args": {"rate": 2}}})


def test_a_fit_of_another_configuration_is_refused_unless_told_otherwise(
    tiny: SimpleNamespace, mlecs_run: SimpleNamespace, tmp_path: Path
) -> None:
    shutil.copytree(mlecs_run.root, tmp_path, dirs_exist_ok=True)
    for allowed in (False, True):
        trainer = tiny.trainer(tmp_path, max_rounds=2, allow_other_config=allowed)
        trainer.config = {"seed_everything": 1}
        arguments = (mlecs_run.algorithm, tiny.data(), tiny.parties(), "last")
        if allowed:
            assert trainer.fit(*arguments)["rounds"] == 2
        else:
            with pytest.raises(
                CheckpointError, match="seed_everything: 0 in the checkpoint, 1 now"
            ):
                trainer.fit(*arguments)
