"""The same federation on one process and on two."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mlecs_lightning.modules.copying import byte_pair_tokenizer
from mlecs_lightning.modules.pocket_training import copying_model
from tests.integration.processes import launch
from tests.integration.processes.launch import ended

# Three clients on two ranks, and nothing random that would depend on which rank draws it. SGD: Adam
# takes steps of one size however small a gradient is, so that a sum in another order, different in
# its last bit, would show.
ODD = """
edge:
  lora: {dropout: 0.0}
  connector: {dropout: 0.0}
  optimizer: {class_path: SGD, init_args: {lr: 0.005}}
server:
  lora: {dropout: 0.0}
  connector: {dropout: 0.0}
  optimizer: {class_path: SGD, init_args: {lr: 0.005, momentum: 0.9}}
clients:
  study: {modalities: [pixels, profile, fourier]}
"""
# Of 7 samples of a batch one rank gets 4, the other 3.
SETTINGS = ("--data.batch_size", "7", "--trainer.limit_test_batches", "3")

Fit = Callable[..., Path]


@pytest.fixture(scope="module")
def fit(tiny_yaml: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """Fit on some ranks; returns the folder of checkpoints."""
    odd = tmp_path_factory.mktemp("odd") / "odd.yaml"
    odd.write_text(ODD)

    def run(root: Path, *more: object, ranks: int = 1) -> Path:
        args = ["fit", "--config", tiny_yaml, "--config", odd, *SETTINGS]
        args += ["--trainer.default_root_dir", root, "--trainer.devices", ranks, *more]
        root.mkdir(exist_ok=True)
        output = root / "output.txt"
        output.unlink(missing_ok=True)
        started = (
            [launch.start(*args, output=str(output))]
            if ranks == 1
            else launch.start_ranks(ranks, *args, output=str(output))
        )
        assert [ended(process) for process in started] == [0] * ranks, output.read_text()
        assert output.read_text().count("direction") == 1  # one process speaks for all
        return root / "tiny" / "version_0" / "checkpoints"

    return run


# Sums in another order are 2e-7 off (of values above 1, relative), the steps of float32 being 1e-7.
TOLERANCE = 3e-6


def differences(one: Any, other: Any, at: str = "") -> list[str]:  # noqa: ANN401 - nested states
    """Return where two states differ by more than the tolerance."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), at
        return [d for k in one for d in differences(one[k], other[k], f"{at}/{k}")]
    if isinstance(one, list):
        assert len(one) == len(other), at
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{at}/{i}")]
    if isinstance(one, Tensor | float):
        a, b = torch.as_tensor(one, dtype=torch.float64), torch.as_tensor(other)
        difference = ((a - b).abs() / a.abs().clamp_min(1)).max()
        return [f"{at}: {float(difference)}"] if not difference <= TOLERANCE else []
    return [f"{at}: {one!r}, {other!r}"] if one != other else []


COMPARED = ("names", "server", "clients", "ledger", "faults", "history", "warmup")


def check_equal(one: Path, other: Path) -> None:
    states = [torch.load(folder / "round=0001.ckpt", weights_only=True) for folder in (one, other)]
    found = [d for key in COMPARED for d in differences(states[0][key], states[1][key], key)]
    assert found == []


@pytest.fixture(scope="module")
def alone(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of two rounds in one process: read them, do not change them."""
    return fit(tmp_path_factory.mktemp("alone"))


def test_two_ranks_do_what_one_does_and_one_goes_on_from_there(
    fit: Fit, alone: Path, tmp_path: Path
) -> None:
    folder = fit(tmp_path, ranks=2)
    check_equal(alone, folder)
    said = [json.loads((f.parent / "summary.json").read_text()) for f in (alone, folder)]
    assert differences(*({**s, "seconds": 0} for s in said)) == []
    adapters = sorted(p.name for p in (folder.parent / "adapters").iterdir())
    assert adapters == ["hall", "kitchen", "server", "study"]
    (folder / "round=0001.ckpt").unlink()
    check_equal(alone, fit(tmp_path, "--ckpt_path", "last"))


@pytest.mark.slow
def test_two_ranks_go_on_where_one_stopped(fit: Fit, alone: Path, tmp_path: Path) -> None:
    fit(tmp_path, "--trainer.max_rounds", "1")
    folder = fit(tmp_path, "--trainer.store", "disk", "--ckpt_path", "last", ranks=2)
    path = folder / "round=0001.ckpt"
    state = torch.load(path, weights_only=True)
    state["clients"] = {
        name: torch.load(folder / "clients" / file, weights_only=True)
        for name, file in state["clients"].items()
    }
    torch.save(state, path)
    check_equal(alone, folder)


@pytest.mark.slow
def test_representations_of_clients_on_two_ranks_are_those_on_one(fit: Fit, tmp_path: Path) -> None:
    keys = {"fused_weight": "0.5", "representations": "{weight: 0.5}", "anchors": "sensed"}
    more = [part for k, v in keys.items() for part in (f"--algorithm.init_args.{k}", v)]
    check_equal(fit(tmp_path / "1", *more), fit(tmp_path / "2", *more, ranks=2))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["server", "device"])
def test_noise_and_epsilon_of_two_ranks_are_those_of_one(
    fit: Fit, tmp_path: Path, where: str
) -> None:
    private = ("--algorithm", "FedAvg", "--algorithm.weights", "equal")
    private += ("--trainer.participation.fraction", "0.6")
    private += ("--trainer.update_limits.max_ratio", "null", "--trainer.privacy")
    private += (f"{{clip: 0.01, noise_multiplier: 1.0, delta: 0.01, where: {where}}}",)
    one, two = fit(tmp_path / "1", *private), fit(tmp_path / "2", *private, ranks=2)
    check_equal(one, two)
    states = [torch.load(f / "round=0001.ckpt", weights_only=True)["privacy"] for f in (one, two)]
    assert states[0] == states[1]
    (two / "round=0001.ckpt").unlink()
    check_equal(one, fit(tmp_path / "2", *private, "--ckpt_path", "last"))


CODEC = ("--algorithm", "FedAvg", "--trainer.codec", "DWC")
CODEC += ("--trainer.codec.init_args.fraction", "0.25", "--trainer.codec.init_args.bits", "4")


@pytest.mark.slow
def test_a_codec_s_memory_is_with_the_rank_that_serves_the_client(fit: Fit, tmp_path: Path) -> None:
    """The adapters of FedAvg are the same in every bit on any ranks: so must be what is sent."""
    one, two = fit(tmp_path / "1", *CODEC), fit(tmp_path / "2", *CODEC, ranks=2)
    check_equal(one, two)
    wires = torch.load(two / "round=0001.ckpt", weights_only=True)["clients"]
    assert all(rest.any() for w in wires.values() for rest in w["wire"]["left"].values())
    (two / "round=0001.ckpt").unlink()
    check_equal(one, fit(tmp_path / "2", *CODEC, "--ckpt_path", "last"))


@pytest.mark.slow
def test_cdcca_on_two_ranks_is_that_on_one(fit: Fit, tmp_path: Path) -> None:
    """Tokens of three devices on two ranks; every rank learns from its part of every batch."""
    devices = {n: {"modalities": ["pixels", "profile", "fourier"]} for n in ("a", "b", "c")}
    # Of equal scores the last bit would choose; what is left out is drawn on each rank.
    args = ("--algorithm", "CDCCA", "--clients", json.dumps(devices))
    args += ("--algorithm.init_args.token_fraction", "1.0")
    args += ("--algorithm.init_args.token_dropout", "0.0")
    args += ("--algorithm.init_args.answer_weight", "1.0")
    args += ("--algorithm.init_args.feature_weight", "1.0")
    args += ("--algorithm.init_args.train", "[lora, norms, biases, prompts]")
    one, two = fit(tmp_path / "1", *args), fit(tmp_path / "2", *args, ranks=2)
    check_equal(one, two)
    assert torch.load(two / "round=0001.ckpt", weights_only=True)["faults"] == []
    losses = torch.load(two / "round=0001.ckpt", weights_only=True)["history"][1]
    assert losses["server/akd/logits"] > 0
    assert losses["server/tokens"] == 3 * 7 * 3


@pytest.mark.slow
def test_texts_read_as_tokens_on_two_ranks_are_those_on_one(fit: Fit, tmp_path: Path) -> None:
    """Also where clients lack some of them at random, and samples say nothing at all."""
    said = [f"table {i} is set for {i % 5} guests" for i in range(60)]
    lines = [
        {
            "id": f"s{i}",
            "split": ("public", "train", "train", "test")[i % 4],
            "domain": ("hall", "kitchen", "study")[i % 3],
            "modalities": {"said": {"text": text} if i % 7 else None, "ink": [i, -i]},
            "target": f"{text} .",
        }
        for i, text in enumerate(said)
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer = byte_pair_tokenizer(said, special=["<eos>", "<slot>"], end="<eos>")
    torch.manual_seed(0)
    lm = copying_model(tokenizer, layers=2, width=16, heads=2, spread=0.2)
    for part in (tokenizer, lm):
        part.save_pretrained(tmp_path / "model")
    text = {"kind": "text", "shape": [48], "as": "tokens", "max_tokens": 12}
    given = {
        "data": {
            "class_path": "Manifest",
            "init_args": {
                "file": str(tmp_path / "m.jsonl"),
                "modalities": {"said": text, "ink": {"kind": "vector", "shape": [2]}},
                "cache_dir": str(tmp_path / "cache"),
                "sample_rate": 0.6,
            },
        },
        **{p: {"backbone": {"model": str(tmp_path / "model")}} for p in ("server", "edge")},
    }
    (tmp_path / "words.json").write_text(json.dumps(given))
    clients = {
        name: {"modalities": ["said", "ink"], "domains": [name]}
        for name in ("hall", "kitchen", "study")
    }
    args = ("--config", tmp_path / "words.json", "--clients", json.dumps(clients))
    one, two = fit(tmp_path / "1", *args), fit(tmp_path / "2", *args, ranks=2)
    check_equal(one, two)
    states = torch.load(two / "round=0001.ckpt", weights_only=True)
    assert states["faults"] == []


@pytest.mark.slow
def test_more_ranks_than_clients_and_faults_among_them(
    fit: Fit, alone: Path, tmp_path: Path
) -> None:
    """Three ranks for two participants; the aggregate and the record are those of one process."""
    trouble = ("--trainer.participation.fraction", "0.67", "--trainer.faults.crash_rate", "0.5")
    trouble += ("--trainer.faults.crash_within", "2", "--trainer.faults.seed", "1")
    one, three = fit(tmp_path / "1", *trouble), fit(tmp_path / "3", *trouble, ranks=3)
    check_equal(one, three)
    assert torch.load(three / "round=0001.ckpt", weights_only=True)["faults"]


@pytest.mark.slow
def test_predictions_of_two_ranks_are_those_of_one(alone: Path, tiny_yaml: Path) -> None:
    odd = alone.parents[2] / "odd.yaml"
    odd.write_text(ODD)
    root = alone.parents[2]
    args = ["--config", tiny_yaml, "--config", odd, *SETTINGS, "--trainer.default_root_dir", root]
    said = []
    for ranks in (1, 2):
        command = ["predict", *args, "--ckpt_path", "last", "--trainer.devices", ranks]
        assert [ended(p) for p in launch.start_ranks(ranks, *command)] == [0] * ranks
        said.append((alone.parent / "predictions.jsonl").read_text())
    assert said[0] == said[1]
    assert len(said[0].splitlines()) > 10


LAUNCHERS = {
    "the script itself": (),
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
}


@pytest.mark.parametrize("launcher", ["the script itself", "torchrun"])
@pytest.mark.slow
def test_two_processes_are_launched_by(
    launcher: str, repo_root: Path, tiny_yaml: Path, cache_dir: Path, tmp_path: Path
) -> None:
    command = [sys.executable, *LAUNCHERS[launcher], str(repo_root / "cli.py"), "fit"]
    command += ["--config", str(tiny_yaml), "--trainer.fast_dev_run", "true"]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    ran = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "2 processes" in ran.stderr
    assert ran.stdout.count("direction") == 1


def test_a_batch_smaller_than_the_ranks_is_refused(tiny_yaml: Path, tmp_path: Path) -> None:
    output = tmp_path / "output.txt"
    args = ("fit", "--config", tiny_yaml, "--data.batch_size", "2", "--trainer.devices", "3")
    started = launch.start_ranks(3, *args, output=str(output))
    assert [ended(process) for process in started] == [1, 1, 1]
    assert "data.init_args.batch_size is 2: the 3 processes of" in output.read_text()


@pytest.mark.slow
def test_answers_of_two_ranks_are_those_of_one(fit: Fit, tmp_path: Path) -> None:
    """Each rank counts the votes of all clients; parts of a batch may lack any target."""
    args = ("--algorithm", "FedAvg", "--data.public_labelled", "0.2")
    args += ("--algorithm.answers", "{server_threshold: 0.0, client_threshold: 0.0}")
    one, two = fit(tmp_path / "1", *args), fit(tmp_path / "2", *args, ranks=2)
    check_equal(one, two)
    ledger = json.loads((two.parent / "summary.json").read_text())["communication"]
    assert "answers" in json.dumps(ledger)


@pytest.mark.slow
def test_encoders_of_two_ranks_are_those_of_one(fit: Fit, tmp_path: Path) -> None:
    args = ("--algorithm", "MultiFedAvg")
    one, two = fit(tmp_path / "1", *args), fit(tmp_path / "2", *args, ranks=2)
    check_equal(one, two)
    (two / "round=0001.ckpt").unlink()
    check_equal(one, fit(tmp_path / "2", *args, "--ckpt_path", "last"))


@pytest.mark.slow
def test_two_ranks_train_three_groups_as_one_does(fit: Fit, tmp_path: Path) -> None:
    groups = ("--clients.hall.lora", "{r: 4, alpha: 4}", "--clients.study.backbone.model")
    groups += ("pocket/llm", "--clients.cellar", "{modalities: [pixels]}")
    groups += ("--clients.cellar.backbone.model", "pocket/xs")
    groups += ("--algorithm.init_args.aggregation", "svd")
    one, two = fit(tmp_path / "1", *groups), fit(tmp_path / "2", *groups, ranks=2)
    check_equal(one, two)
    summary = json.loads((two.parent / "summary.json").read_text())
    assert summary["groups"] == {
        **{"slm": ["kitchen", "hall"], "slm_2": ["study"], "slm_3": ["cellar"]}
    }
