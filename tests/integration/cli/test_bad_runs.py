"""What only a model, a checkpoint or the training can tell to be wrong."""

import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.integration.cli.messages import missing

CLI = Callable[..., SimpleNamespace]


# The command --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("", ["subcommand", "fit", "validate", "test", "predict"]),
        ("fot", ["subcommand", "'fot'", "'fit'"]),
        ("fit", ["required", "data", "algorithm", "clients"]),
        ("fit --config", ["--config", "expected one argument"]),
        ("validate --config TINY", ["ckpt_path", "last, best or a checkpoint file"]),
        *(
            pytest.param(
                f"{command} --config TINY",
                ["ckpt_path", "last, best or a checkpoint file"],
                marks=pytest.mark.slow,
            )
            for command in ("test", "predict")
        ),
        ("predict --config TINY --ckpt_path last", ["ckpt_path: 'last'", "no checkpoint", "TMP"]),
    ],
)
def test_an_incomplete_command_says_what_is_missing(
    mlecs: CLI, tiny_yaml: Path, tmp_path: Path, args: str, words: list[str]
) -> None:
    root = ["--trainer.default_root_dir", tmp_path / "runs"] if "TINY" in args else []
    ran = mlecs(*shlex.split(args.replace("TINY", str(tiny_yaml))), *root)
    assert (ran.code, ran.out) == (1, "")
    assert missing(words, ran.err, tmp_path) == [], ran.err
    assert not (tmp_path / "runs").exists()


# Models -------------------------------------------------------------------------------------------

# What only a loaded language model can tell.
MODELS: dict[str, tuple[str, list[str]]] = {
    "unknown hub id": ("--edge.backbone.model gpt-none", ["edge.backbone.model 'gpt-none'"]),
    "folder without a model": ("--server.backbone.model TMP", ["server.backbone.model 'TMP'"]),
    "unknown layers": (
        "--edge.lora.target_modules [c_attn,q_proj]",
        ["edge.lora.target_modules: ['q_proj']", "pocket/slm-", "'c_attn', 'c_fc', 'c_proj'"],
    ),
    "unknown layers of the server": (
        "--server.lora.target_modules [q_proj]",
        ["server.lora.target_modules: ['q_proj']", "'c_attn', 'c_fc', 'c_proj'"],
    ),
    "prompt without end": (
        "--edge.connector.prompt_length 250",
        ["clients.kitchen", "connector.prompt_length 250", "needs 263 positions", "has 256"],
    ),
    "answer without end": (
        "--server.max_new_tokens 250",
        ["server, split public: ", "max_new_tokens 250", "needs 259 positions", "has 256"],
    ),
}


SLOW = {"folder without a model", "unknown layers of the server", "answer without end"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, case in MODELS.items()
    ],
)
def test_what_a_model_cannot_do_is_refused_before_training(
    mlecs: CLI, tiny_yaml: Path, tmp_path: Path, args: str, words: list[str]
) -> None:
    root = ("--trainer.default_root_dir", tmp_path / "runs")
    given = shlex.split(args.replace("TMP", str(tmp_path)))
    ran = mlecs("fit", "--config", tiny_yaml, *root, *given)
    assert (ran.code, ran.out) == (1, "")
    assert missing(words, ran.err, tmp_path) == [], ran.err
    assert not (tmp_path / "runs").exists()


# Training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("party", "words"),
    [
        ("server", ["not finite", "server: ", "'warmup'"]),
        # Its words stay in the client's own file.
        ("edge", ["'kitchen', stage 'private': NonFiniteError", "clients/kitchen/errors.log"]),
    ],
)
def test_a_loss_that_is_not_finite_names_party_and_stage(
    mlecs: CLI, tiny_yaml: Path, tmp_path: Path, party: str, words: list[str]
) -> None:
    rate = (f"--{party}.optimizer.init_args.lr", 1e30)
    root = ("--trainer.default_root_dir", tmp_path)
    ran = mlecs("fit", "--config", tiny_yaml, *root, *rate)
    assert (ran.code, ran.out) == (1, "")
    assert missing(words, ran.err, tmp_path) == [], ran.err
    assert list(tmp_path.rglob("round=????.ckpt")) == []


# Checkpoints --------------------------------------------------------------------------------------

CHECKPOINTS: dict[str, tuple[str, list[str]]] = {
    "other clients": ("--clients.attic '{modalities: [pixels]}'", ["other clients: ['attic']"]),
    "other modalities": ("--clients.hall.modalities [pixels]", ["other models", "fourier"]),
    "other rank": (
        "--edge.lora.r 1 --edge.lora.alpha 2",
        ["other models", "lora_A", "shape (1, ", "got (2, "],
    ),
    "other width": (
        "--edge.connector.width 8 --server.connector.width 8",
        ["other models", "shape (3, 8), got (3, 16)"],
    ),
}


@pytest.mark.parametrize(("args", "words"), CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_a_checkpoint_of_another_federation_is_refused(
    mlecs: CLI,
    tiny_yaml: Path,
    fitted: SimpleNamespace,
    tmp_path: Path,
    args: str,
    words: list[str],
) -> None:
    root = ("--trainer.default_root_dir", fitted.folder.parents[1])
    before = sorted(fitted.folder.parent.rglob("*"))
    ran = mlecs("validate", "--config", tiny_yaml, *root, "--ckpt_path", "last", *shlex.split(args))
    assert (ran.code, ran.out) == (1, "")
    assert missing(["ckpt_path", *words], ran.err, tmp_path) == [], ran.err
    assert sorted(fitted.folder.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "damage",
    ["half", *(pytest.param(n, marks=pytest.mark.slow) for n in ("text", "empty", "other"))],
)
def test_a_damaged_checkpoint_is_refused(
    mlecs: CLI, tiny_yaml: Path, fitted: SimpleNamespace, tmp_path: Path, damage: str
) -> None:
    whole = (fitted.folder / "checkpoints/round=0001.ckpt").read_bytes()
    broken = {
        "half": whole[: len(whole) // 2],
        "text": b"seed_everything: 7\n",
        "empty": b"",
        "other": (fitted.folder / "adapters/hall/adapter_model.safetensors").read_bytes(),
    }
    path = tmp_path / "broken.ckpt"
    path.write_bytes(broken[damage])
    root = ("--trainer.default_root_dir", tmp_path / "runs")
    ran = mlecs("fit", "--config", tiny_yaml, *root, "--ckpt_path", path)
    assert (ran.code, ran.out) == (1, "")
    words = ["ckpt_path: 'TMP/broken.ckpt' is damaged", "no sound one beside it"]
    assert missing(words, ran.err, tmp_path) == []
    assert not (tmp_path / "runs").exists()
