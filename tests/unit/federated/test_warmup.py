"""The warm-up by Lightning's Trainer is that of the federated loop."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric import seed_everything

from mlecs_lightning import MLECS, FedAvg
from mlecs_lightning.algorithms import Standalone, Steps
from mlecs_lightning.checkpoints import CheckpointError
from mlecs_lightning.checkpoints.warmup_files import ClaimedLog
from mlecs_lightning.clients import Federation
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.federated.warmup import ServerWarmup, load_warmup
from mlecs_lightning.modules import Losses, Objective, ServerModule
from mlecs_lightning.rounds import Algorithm, RoundContext, ServerLearner
from mlecs_lightning.types import Batch

ALGORITHMS: dict[str, Callable[..., Algorithm]] = {
    "FedAvg": FedAvg,
    "freeze_a": lambda steps: MLECS(steps=steps, aggregation="freeze_a"),
    "MLECS": MLECS,
    "Standalone": Standalone,
}
QUIET = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)


def lively(tiny: SimpleNamespace, **values: Any) -> Federation:
    """Return parties whose models drop out, so that random numbers matter."""
    settings = tiny.model(lora={"dropout": 0.2}, connector={"dropout": 0.2}, **values)
    parties: Federation = tiny.parties(server=settings, edge=settings)
    return parties


def warm(
    tiny: SimpleNamespace, root: Path, algorithm: Algorithm, **options: Any
) -> SimpleNamespace:
    """Return the server that Lightning warmed up, and its checkpoint."""
    run = ServerWarmup({**QUIET, "accelerator": "cpu", "default_root_dir": root, **options})
    path = run.warmup(algorithm, tiny.data(), lively(tiny))
    assert run.module is not None
    return SimpleNamespace(module=run.module, path=path, trainer=run.trainer)


def federated(tiny: SimpleNamespace, algorithm: Algorithm) -> ServerLearner:
    """Return the server that the federated loop warmed up, as it does."""
    data = tiny.data()
    server: ServerLearner = tiny.build(algorithm, lively(tiny), data).server
    ctx = RoundContext(-1, 0, tuple(tiny.clients))
    seed_everything(ctx.seed_for("server", "warmup") % 2**32, verbose=False)
    algorithm.warmup(server, tiny.loaders(data), ctx)
    return server


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    assert [k for k, v in one.items() if not torch.equal(v, other[k])] == []


@pytest.mark.parametrize("name", ALGORITHMS)
def test_weights_and_moments_are_those_of_the_federated_loop(
    tiny: SimpleNamespace, tmp_path: Path, name: str
) -> None:
    algorithm = ALGORITHMS[name](steps=tiny.steps(warmup=3))
    warmed = warm(tiny, tmp_path, algorithm, gradient_clip_val=0)
    expected = federated(tiny, ALGORITHMS[name](steps=tiny.steps(warmup=3)))
    assert_equal(warmed.module.trainable_state(), expected.module.trainable_state())

    fresh = tiny.build(algorithm, lively(tiny)).server
    load_warmup(warmed.path, fresh.module, fresh.optimizer)
    assert_equal(fresh.module.trainable_state(), expected.module.trainable_state())
    moments, loaded = (s.optimizer.state_dict()["state"] for s in (expected, fresh))
    assert moments.keys() == loaded.keys()
    for number, values in moments.items():
        assert_equal(loaded[number], values)


def test_a_server_trained_further_is_another_one(tiny: SimpleNamespace, tmp_path: Path) -> None:
    """What the test above would not see, if nothing had been trained."""
    fresh = tiny.build(FedAvg(), lively(tiny)).server.module.trainable_state()
    warmed = warm(tiny, tmp_path, FedAvg(), max_steps=1).module.trainable_state()
    assert any(not torch.equal(v, warmed[k]) for k, v in fresh.items())


RATE = {"lr": 1e-3}
# Another optimiser, what is said of its moments, and the steps that they are of.
OTHERS: dict[str, tuple[dict[str, Any], str, set[float]]] = {
    "rate": ({"class_path": "torch.optim.AdamW", "init_args": RATE}, "", {2.0}),
    "class": ({"class_path": "Adagrad", "init_args": RATE}, "AdamW in the checkpoint, Ada", {0.0}),
    "state": ({"init_args": {**RATE, "amsgrad": True}}, "AdamW has no max_exp_avg_sq", set()),
}


@pytest.mark.parametrize(("optimizer", "said", "steps"), OTHERS.values(), ids=OTHERS.keys())
def test_an_optimiser_with_other_settings_keeps_them_and_the_moments_it_can_use(
    tiny: SimpleNamespace,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    optimizer: dict[str, Any],
    said: str,
    steps: set[float],
) -> None:
    path = warm(tiny, tmp_path, FedAvg(), max_steps=2).path
    server = tiny.build(FedAvg(), lively(tiny, optimizer=optimizer)).server
    load_warmup(path, server.module, server.optimizer)
    assert server.optimizer.param_groups[0]["lr"] == 1e-3
    moments = server.optimizer.state_dict()["state"]
    assert {float(own["step"]) for own in moments.values()} == steps
    lines = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert ["server: the optimizer's moments begin anew" in line for line in lines] == (
        [True] if said else []
    )
    assert said in "".join(lines)


def test_a_warm_up_goes_on_with_the_present_rate(tiny: SimpleNamespace, tmp_path: Path) -> None:
    path = warm(tiny, tmp_path, FedAvg(), max_steps=1).path
    rates, steps = [], []
    for name in ("rate", "class"):
        run = ServerWarmup({**QUIET, "accelerator": "cpu", "default_root_dir": tmp_path})
        run._options["max_steps"] = 2
        settings = lively(tiny, optimizer=OTHERS[name][0])
        saved = torch.load(
            run.warmup(FedAvg(), tiny.data(), settings, str(path)) or path, weights_only=True
        )["optimizer_states"][0]
        rates.append(saved["param_groups"][0]["lr"])
        steps.append(max(float(own["step"]) for own in saved["state"].values()))
    assert rates == [1e-3, 1e-3]
    assert steps == [2.0, 1.0]  # moments of both steps, of the last one alone


def test_a_pass_is_shortened_as_in_a_fit(tiny: SimpleNamespace, tmp_path: Path) -> None:
    run = ServerWarmup(
        {**QUIET, "default_root_dir": tmp_path},
        trainer={"limit_train_batches": 2, "accelerator": "cpu", "gradient_clip_val": 0.5},
    )
    run.warmup(FedAvg(steps=tiny.steps(warmup=5)), tiny.data(), tiny.parties())
    assert run.trainer is not None
    assert run.trainer.global_step == 2
    assert run.trainer.gradient_clip_val == 0.5


def test_accumulated_batches_are_taken_from_one_pass(tiny: SimpleNamespace, tmp_path: Path) -> None:
    seen: list[tuple[str, ...]] = []

    class Spied(FedAvg):
        def warmup_objective(self) -> Objective:
            def objective(server: ServerModule, batch: Batch) -> Losses:
                seen.append(batch.ids)
                return server(batch)  # type: ignore[no-any-return]

            return objective

    trainer = warm(tiny, tmp_path, Spied(), max_steps=2, accumulate_grad_batches=3).trainer
    data = tiny.data()
    seed = RoundContext(-1, 0, ()).seed_for("server", "public")
    whole = [b.ids for b in data.loader(data.public("train")).take(6, seed=seed)]
    assert trainer.global_step == 2
    assert seen == whole


def test_after_sigterm_the_exit_code_says_so(tiny: SimpleNamespace, tmp_path: Path) -> None:
    class Stops(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit, match="143"):
        warm(tiny, tmp_path, FedAvg(), max_steps=3, callbacks=Stops())


@pytest.mark.parametrize(
    ("algorithm", "options", "words"),
    [
        (FedAvg(), {"max_steps": 0}, "warmup.max_steps is 0"),
        (FedAvg(steps=Steps(warmup=0)), {}, "warmup.max_steps is 0"),
        (FedAvg(), {"max_steps": 2, "devices": 0}, "warmup: .*devices"),
        (FedAvg(), {"max_steps": 2, "strategy": "dpp"}, "warmup: .*'dpp'"),
        (FedAvg(), {"max_steps": 2, "bananas": 1}, "warmup: .*bananas"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_built(
    tiny: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    algorithm: Algorithm,
    options: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setattr(ServerModule, "__init__", None)
    with pytest.raises(ConfigurationError, match=words):
        warm(tiny, tmp_path, algorithm, **options)


def test_nothing_of_a_checkpoint_that_does_not_fit_is_written(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    path = warm(tiny, tmp_path, FedAvg(), max_steps=1).path
    saved = torch.load(path, weights_only=True)
    saved["state_dict"].popitem()
    torch.save(saved, tmp_path / "short.ckpt")
    server = tiny.build(FedAvg(), lively(tiny)).server.module
    before = server.trainable_state()
    with pytest.raises(CheckpointError, match=r"another server: .*missing"):
        load_warmup(tmp_path / "short.ckpt", server)
    assert_equal(server.trainable_state(), before)


def test_a_model_may_have_moved_to_another_folder(tiny: SimpleNamespace, tmp_path: Path) -> None:
    path = warm(tiny, tmp_path, FedAvg(), max_steps=1).path
    saved = torch.load(path, weights_only=True)
    backbone = saved["hyper_parameters"]["settings"]["backbone"]
    backbone["model"] = f"/elsewhere/{Path(backbone['model']).name}"
    torch.save(saved, tmp_path / "moved.ckpt")
    server = tiny.build(FedAvg(), lively(tiny)).server.module
    load_warmup(tmp_path / "moved.ckpt", server)
    backbone["model"] = "/elsewhere/llama"
    torch.save(saved, tmp_path / "other.ckpt")
    with pytest.raises(
        CheckpointError, match=r"server\.backbone\.model is '/elsewhere/llama' there"
    ):
        load_warmup(tmp_path / "other.ckpt", server)


# The folder ---------------------------------------------------------------------------------------


def test_its_usual_log_is_in_a_version_of_its_own(tiny: SimpleNamespace, tmp_path: Path) -> None:
    logs = tmp_path / "lightning_logs"
    for name in ("version_0_backup", "version_3", "version_x_7"):
        (logs / name).mkdir(parents=True)
    ran = warm(tiny, tmp_path, FedAvg(steps=tiny.steps(warmup=1)), logger=None)
    assert ran.path.parents[1] == logs / "version_4"
    assert list((logs / "version_4").glob("events.out.tfevents.*"))
    # Begun at once: none has written anything when the next asks for its number.
    begun = [ClaimedLog(tmp_path) for _ in range(3)]
    assert [log.log_dir for log in begun] == [str(logs / f"version_{k}") for k in (5, 6, 7)]
    assert [log.log_dir for log in begun] == [str(logs / f"version_{k}") for k in (5, 6, 7)]
