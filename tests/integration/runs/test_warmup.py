"""``mlecs warmup``: Lightning's Trainer trains the server, and a fit starts from its checkpoint."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from tests.integration.processes import launch

STEPS = 5
EVERY_STEP = """
callbacks:
- class_path: ModelCheckpoint
  init_args: {every_n_train_steps: 1, save_top_k: -1}
logger:
- class_path: CSVLogger
  init_args: {save_dir: SAVE, name: log, version: ''}
log_every_n_steps: 1
enable_model_summary: false
"""


@pytest.fixture(scope="module")
def warmup(
    mlecs: Callable[..., SimpleNamespace], tiny_yaml: Path
) -> Callable[..., SimpleNamespace]:
    """``mlecs warmup`` on the small configuration: returns the folder and reads checkpoints."""

    def call(root: Path, *args: object, config: Path = tiny_yaml) -> SimpleNamespace:
        root.mkdir(parents=True, exist_ok=True)
        (root / "warmup.yaml").write_text(EVERY_STEP.replace("SAVE", str(root)))
        given = ("--trainer.default_root_dir", root, "--warmup", root / "warmup.yaml")
        ran = mlecs("warmup", "--config", config, *given, "--warmup.max_steps", STEPS, *args)
        folder = root / "log"
        return SimpleNamespace(
            **vars(ran),
            folder=folder,
            path=lambda step: folder / "checkpoints" / f"epoch=0-step={step}.ckpt",
            state=lambda step: torch.load(
                folder / "checkpoints" / f"epoch=0-step={step}.ckpt", weights_only=True
            ),
        )

    return call


@pytest.fixture(scope="module")
def warmed(
    warmup: Callable[..., SimpleNamespace], tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """Five steps with a checkpoint of each: read it, do not change it."""
    ran = warmup(tmp_path_factory.mktemp("warmed"))
    assert ran.code == 0, ran.err
    return ran


def test_prints_the_checkpoint_and_writes_log_and_configuration(warmed: SimpleNamespace) -> None:
    assert warmed.out.strip() == str(warmed.path(STEPS))
    header, *rows = (warmed.folder / "metrics.csv").read_text().splitlines()
    names = {"train_loss", "train_lm_llm", "train_lm_slm", "val_loss"}
    assert set(header.split(",")) == {"epoch", "step"} | names
    assert len(rows) == STEPS + 1  # and the validation
    config = yaml.safe_load((warmed.folder / "config.yaml").read_text())
    assert config["warmup"]["max_steps"] == STEPS


def test_checkpoint_holds_what_trains_and_loads_weights_only(warmed: SimpleNamespace) -> None:
    from mlecs_lightning.modules import ServerModule

    saved = warmed.state(STEPS)
    assert not [k for k in saved["state_dict"] if ".backbone.lm." in k and ".lora_" not in k]
    module = ServerModule.load_from_checkpoint(warmed.path(STEPS))
    for name, value in module.trainable_state().items():
        assert torch.equal(value, saved["state_dict"][name])


def test_a_fit_from_the_checkpoint_is_one_with_a_warm_up_of_its_own(
    fit: Callable[..., SimpleNamespace],
    warmed: SimpleNamespace,
    differences: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    one = ("--trainer.max_rounds", 1, "--algorithm.init_args.steps.warmup", STEPS)
    own = fit(tmp_path / "own", *one)
    begun = fit(tmp_path / "begun", *one, "--trainer.warmup_ckpt_path", warmed.path(STEPS))
    found = differences(own.checkpoint(0), begun.checkpoint(0))
    assert [d for d in found if d.split("/")[1] not in ("config", "seconds", "warmup")] == []
    assert begun.summary["clients"] == own.summary["clients"]


def same_end(one: dict[str, Any], other: dict[str, Any], compare: Callable[..., list[str]]) -> bool:
    parts = ("state_dict", "optimizer_states", "global_step", "rng_states")
    return not [d for part in parts for d in compare(one[part], other[part], part)]


@pytest.mark.parametrize("step", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_resumed_it_ends_in_the_same_bits(
    warmup: Callable[..., SimpleNamespace],
    warmed: SimpleNamespace,
    differences: Callable[..., list[str]],
    tmp_path: Path,
    step: int,
) -> None:
    resumed = warmup(tmp_path, "--ckpt_path", warmed.path(step))
    assert resumed.code == 0, resumed.err
    assert [s for s in range(STEPS + 1) if resumed.path(s).exists()] == [
        *range(step + 1, STEPS + 1)
    ]
    assert same_end(resumed.state(STEPS), warmed.state(STEPS), differences)
    assert not same_end(resumed.state(STEPS), warmed.state(STEPS - 1), differences)


def test_a_warm_up_that_ended_goes_on_with_more_steps(
    warmup: Callable[..., SimpleNamespace],
    warmed: SimpleNamespace,
    differences: Callable[..., list[str]],
    tmp_path: Path,
) -> None:
    short = warmup(tmp_path / "short", "--warmup.max_steps", 2)
    longer = warmup(tmp_path / "longer", "--ckpt_path", short.path(2))
    assert longer.code == 0, longer.err
    last = tmp_path / "longer" / "log" / "checkpoints" / f"epoch=1-step={STEPS}.ckpt"
    saved = torch.load(last, weights_only=True)
    assert same_end(saved, warmed.state(STEPS), differences)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--server.lora.r", 4), "server.lora.r is 2 there and 4 here"),
        pytest.param(
            ("--server.connector.prompt_length", 8),
            "server.connector.prompt_length is 4 there",
            marks=pytest.mark.slow,
        ),
        (("--edge.lora.alpha", 2), "clients.lora.alpha is 4 there and 2 here"),
        pytest.param(
            ("--server.backbone.model", "pocket/llm"),
            "server.backbone.model is ",
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.parametrize("command", ["fit", "warmup"])
def test_a_checkpoint_of_another_server_is_refused(
    mlecs: Callable[..., SimpleNamespace],
    warmed: SimpleNamespace,
    tiny_yaml: Path,
    tmp_path: Path,
    command: str,
    option: tuple[object, ...],
    words: str,
) -> None:
    key = {"fit": "trainer.warmup_ckpt_path", "warmup": "ckpt_path"}[command]
    given = ("--config", tiny_yaml, "--trainer.default_root_dir", tmp_path)
    ran = mlecs(command, *given, f"--{key}", warmed.path(STEPS), *option)
    assert ran.code == 1
    assert f"error: {key}: " in ran.err
    assert words in ran.err
    assert ran.err.count(" there and ") == 1


@pytest.mark.slow
def test_what_is_no_checkpoint_of_a_warm_up_is_refused(
    mlecs: Callable[..., SimpleNamespace],
    fitted: SimpleNamespace,
    tiny_yaml: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "garbage.ckpt").write_bytes(b"\x00garbage")
    torch.save([1], tmp_path / "list.ckpt")
    round_file = fitted.folder / "checkpoints" / "round=0000.ckpt"
    for path, words in (
        (tmp_path / "none.ckpt", ": there is no such file"),
        (tmp_path / "garbage.ckpt", " is damaged, or is no file of this package: "),
        (tmp_path / "list.ckpt", ": this is no checkpoint that `warmup` wrote"),
        (round_file, ": this is no checkpoint that `warmup` wrote"),
    ):
        for command, key in (("fit", "trainer.warmup_ckpt_path"), ("warmup", "ckpt_path")):
            given = ("--config", tiny_yaml, "--trainer.default_root_dir", tmp_path)
            ran = mlecs(command, *given, f"--{key}", path)
            assert ran.code == 1
            assert f"error: {key}: {str(path)!r}{words}" in ran.err


def test_weights_that_are_not_finite_are_an_error_and_are_not_saved(
    warmup: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    ran = warmup(tmp_path, "--server.optimizer.init_args.lr", "1e30", "--warmup.callbacks", "null")
    assert ran.code == 1
    assert "error: server: weights are not finite after stage 'warmup'" in ran.err
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    "command",
    [
        "fit",
        "warmup",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("validate", "test", "predict")),
    ],
)
def test_every_command_knows_the_key(
    mlecs: Callable[..., SimpleNamespace], tiny_yaml: Path, command: str
) -> None:
    given = ("--config", tiny_yaml, "--warmup.max_time", "00:01:00:00")
    ran = mlecs(command, *given, "--print_config")
    assert ran.code == 0
    assert yaml.safe_load(ran.out)["warmup"]["max_time"] == "00:01:00:00"
    wrong = mlecs(command, *given, "--warmup.max_stepps", 3)
    assert wrong.code == 1
    assert "max_stepps" in wrong.err
    assert "'log_every_n_steps'" in wrong.err


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("", marks=pytest.mark.slow)])
def test_two_processes_end_where_one_does(
    warmup: Callable[..., SimpleNamespace],
    repo_root: Path,
    tiny_yaml: Path,
    tmp_path: Path,
    launcher: str,
) -> None:
    """Batches of seven on two processes, without dropout and without Adam."""
    settings = yaml.safe_load(tiny_yaml.read_text())
    for party in ("server", "edge"):
        settings[party]["lora"]["dropout"] = settings[party]["connector"]["dropout"] = 0.0
        settings[party]["optimizer"] = {"class_path": "SGD", "init_args": {"lr": 0.1}}
    settings["trainer"]["limit_val_batches"] = None
    settings["data"]["init_args"] |= {"batch_size": 7, "eval_batch_size": 24}
    config = tmp_path / "sgd.yaml"
    config.write_text(yaml.safe_dump(settings))
    one = warmup(tmp_path / "one", config=config)
    assert one.code == 0, one.err

    (tmp_path / "two").mkdir()
    options, output = tmp_path / "two" / "warmup.yaml", tmp_path / "two" / "output.txt"
    options.write_text(EVERY_STEP.replace("SAVE", str(tmp_path / "two")))
    args = ["warmup", "--config", config, "--warmup", options]
    args += ["--warmup.max_steps", STEPS, "--warmup.devices", 2]
    if launcher:
        started = launch.start_ranks(2, *args, output=str(output))
        assert [launch.ended(process) for process in started] == [0, 0], output.read_text()
    else:
        script = [sys.executable, repo_root / "cli.py", *map(str, args)]
        with output.open("w") as file:
            code = subprocess.run(script, stdout=file, stderr=file, timeout=240).returncode
        assert code == 0, output.read_text()
    folder = tmp_path / "two" / "log"
    written = folder / "checkpoints" / f"epoch=0-step={STEPS}.ckpt"
    assert output.read_text().splitlines().count(str(written)) == 1
    first, second = (
        torch.load(at / "checkpoints" / f"epoch=0-step={STEPS}.ckpt", weights_only=True)
        for at in (one.folder, folder)
    )
    assert len(second["rng_states"]) == 2
    for name, value in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][name], value, rtol=0, atol=1e-6, msg=name)
    logs = [(at / "metrics.csv").read_text().splitlines() for at in (one.folder, folder)]
    assert logs[0][0] == logs[1][0]
    for mine, theirs in zip(logs[0][1:], logs[1][1:], strict=True):
        for a, b in zip(mine.split(","), theirs.split(","), strict=True):
            # Sums in another order: 3.8e-6 on the plainest instruction set; ten times that.
            assert a == b == "" or float(a) == pytest.approx(float(b), rel=4e-5)
