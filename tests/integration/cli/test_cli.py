"""What a user types, and what it leaves on screen and disk."""

import csv
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlecs_lightning.data import Digits
from mlecs_lightning.data.availability import draw_client_modalities
from mlecs_lightning.federated import FederatedTrainer
from mlecs_lightning.report.results.reading import read_runs
from mlecs_lightning.storage.digests import SUMS

Fit = Callable[..., SimpleNamespace]
Differences = Callable[[object, object], list[str]]


def rounds(folder: Path) -> list[dict[str, str]]:
    """Read metrics.csv: the warm-up of the server, then one row for each round."""
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


# fit ----------------------------------------------------------------------------------------------


def test_fit_prints_every_party_beside_the_constant_sentence(fitted: SimpleNamespace) -> None:
    rows = {line.split("│")[1].strip(): line for line in fitted.out.splitlines() if "│" in line}
    assert "MLECS, 2 rounds, seed 7" in fitted.out
    clients = fitted.summary["clients"]
    for party, scores in (*clients.items(), ("mean of clients", fitted.summary["mean"])):
        all_domains, own = scores["all"]["rouge_lsum"], scores["own"]["rouge_lsum"]
        assert f"{all_domains:.3f} ({own:.3f})" in rows[party]
    assert f"{fitted.summary['server']['rouge_lsum']:.3f}" in rows["server"]
    assert f"{fitted.summary['constant']['server']['rouge_lsum']:.3f}" in rows["constant sentence"]
    assert all(" ".join(client["modalities"]) in fitted.out for client in clients.values())


def test_fit_prints_bytes_and_ratios_with_their_denominators(fitted: SimpleNamespace) -> None:
    wire = fitted.summary["communication"]
    up, down = (
        next(line for line in fitted.out.splitlines() if line.startswith(f"│ {way}"))
        for way in ("uplink", "downlink")
    )
    assert f"{wire['uplink_bytes'] / 1e3:.3g} kB" in up
    assert f"{wire['downlink_bytes'] / 1e3:.3g} kB" in down
    # Two clients, two rounds; both ratios are of one client's round.
    assert f"{wire['uplink_bytes'] / 4 / wire['server_parameter_bytes']:.2%}" in up
    assert f"{wire['ratio_of_edge_parameters']['downlink']:.2%}" in down
    smallest, *_, largest = sorted(wire["edge_parameter_bytes"].values())
    assert f"({smallest / 1e6:.3g} MB to {largest / 1e6:.3g} MB)" in fitted.out
    assert f"({wire['server_parameter_bytes'] / 1e6:.3g} MB)" in fitted.out.replace("\n", " ")


def test_fit_leaves_a_run_folder(fitted: SimpleNamespace) -> None:
    left = {str(p.relative_to(fitted.folder)) for p in fitted.folder.rglob("*") if p.is_file()}
    events = {name for name in left if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    adapters = {
        f"adapters/{party}/{file}"
        for party in ("kitchen", "hall", "server")
        for file in ("adapter_config.json", "adapter_model.safetensors", SUMS)
    }
    assert left - events - adapters == {
        SUMS,
        "config.yaml",
        "metrics.csv",
        "summary.json",
        "checkpoints/round=0000.ckpt",
        "checkpoints/round=0001.ckpt",
    }
    assert adapters <= left
    steps = [row["step"] for row in rounds(fitted.folder)]
    assert steps == ["0", "1", "2"]


def test_the_config_of_a_run_reproduces_it(
    fitted: SimpleNamespace, fit: Fit, tmp_path: Path, differences: Differences
) -> None:
    again = fit(tmp_path, config=fitted.folder / "config.yaml")
    assert again.summary == fitted.summary
    unlike = differences(fitted.checkpoint(1), again.checkpoint(1))
    assert [d for d in unlike if not d.startswith(("/seconds", "/config/trainer"))] == []
    again.config["trainer"]["default_root_dir"] = fitted.config["trainer"]["default_root_dir"]
    assert again.config == fitted.config


@pytest.mark.slow
def test_another_seed_gives_another_run(fitted: SimpleNamespace, fit: Fit, tmp_path: Path) -> None:
    other = fit(tmp_path, "--seed_everything", 8)
    assert other.summary["seed"] == 8
    columns = ("clients/kitchen/private/loss", "clients/hall/private/loss", "server/val/loss")
    for column in columns:
        assert rounds(other.folder)[1][column] != rounds(fitted.folder)[1][column]


def test_a_fit_goes_on_from_its_last_checkpoint_to_the_same_bits(
    fitted: SimpleNamespace, fit: Fit, tmp_path: Path, differences: Differences
) -> None:
    first = fit(tmp_path, "--trainer.max_rounds", 1)
    assert first.summary["rounds"] == 1
    rest = fit(tmp_path, "--ckpt_path", "last")
    assert rest.folder == first.folder
    assert rest.summary == fitted.summary
    unlike = differences(fitted.checkpoint(1), rest.checkpoint(1))
    assert {d for d in unlike if not d.startswith("/config/")} == {"/seconds"}


@pytest.mark.slow
def test_the_script_in_a_checkout_says_no_more_than_it_must(
    repo_root: Path, tiny_yaml: Path, fitted: SimpleNamespace, tmp_path: Path
) -> None:
    """One true process: what Lightning, transformers and PEFT want to say stays out of the way."""
    command = [sys.executable, repo_root / "cli.py", "fit", "--config", tiny_yaml]
    ran = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    seed, *rest = ran.stderr.splitlines()
    assert seed == "Seed set to 7"
    # Our own word on answers of two words.
    assert all(".max_new_tokens 2 and are never" in line for line in rest[:3])
    assert [line[:4] for line in rest[3:]] == ["and "]
    table = ran.stdout.splitlines()
    assert table[:-1] == fitted.out.splitlines()[:-1]
    assert table[-1].endswith(" s")
    summary = json.loads((tmp_path / "runs/tiny/version_0/summary.json").read_text())
    assert {k: v for k, v in summary.items() if k != "seconds"} == fitted.summary


# validate, test, predict --------------------------------------------------------------------------


@pytest.fixture
def judge(
    fitted: SimpleNamespace, mlecs: Callable[..., SimpleNamespace], tiny_yaml: Path
) -> Callable[..., str]:
    """A subcommand on the checkpoints of the small run: returns what it printed."""

    def call(subcommand: str, *args: object) -> str:
        root = ("--trainer.default_root_dir", fitted.folder.parents[1])
        ran = mlecs(subcommand, "--config", tiny_yaml, *root, *args)
        assert ran.code == 0, ran.err
        assert [p.name for p in fitted.folder.parent.iterdir()] == ["version_0"]
        printed: str = ran.out
        return printed

    return call


@pytest.mark.parametrize("ckpt_path", ["last", "best", "round=0000.ckpt"])
def test_validate_gives_the_losses_of_the_round(
    judge: Callable[..., str], fitted: SimpleNamespace, ckpt_path: str
) -> None:
    history = rounds(fitted.folder)[1:]
    losses = [float(row["clients/val/loss"]) for row in history]
    round = {"last": 1, "best": losses.index(min(losses))}.get(ckpt_path, 0)
    if ckpt_path.endswith(".ckpt"):
        ckpt_path = str(fitted.folder / "checkpoints" / ckpt_path)
    printed = judge("validate", "--ckpt_path", ckpt_path)
    rows = {line.split("│")[1].strip(): line for line in printed.splitlines() if "│" in line}
    parties = {"mean of clients": "clients", "server": "server", "hall": "clients/hall"}
    for shown, party in parties.items():
        for score in ("loss", "macro_f1", "rouge_lsum"):
            assert f" {float(history[round][f'{party}/val/{score}']):.3f} " in rows[shown]


def test_test_gives_the_table_of_the_fit(
    judge: Callable[..., str], fitted: SimpleNamespace
) -> None:
    before = (fitted.folder / "summary.json").read_text()
    printed = judge("test", "--ckpt_path", "last").splitlines()
    assert printed[:-1] == fitted.out.splitlines()[:-1]
    assert (fitted.folder / "summary.json").read_text() == before


def test_predict_writes_every_test_sample_of_every_party(
    judge: Callable[..., str], fitted: SimpleNamespace
) -> None:
    whole = ("--trainer.limit_test_batches", "null", "--data.eval_batch_size", 360)
    path = Path(judge("predict", "--ckpt_path", "last", *whole).strip())
    assert path == fitted.folder / "predictions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    test = Digits().load_pools().test
    targets = dict(zip(test.ids, test.targets, strict=True))
    assert len(targets) == 360
    for party in ("kitchen", "hall", "server"):
        said = [row for row in rows if row["party"] == party]
        assert {row["id"]: row["target"] for row in said} == targets
        assert len(said) == len(targets)
    assert len(rows) == 3 * 360
    assert all(row.keys() == {"party", "id", "prediction", "target"} for row in rows)


@pytest.mark.slow
def test_folders_that_are_no_version_stop_no_command(
    fitted: SimpleNamespace,
    mlecs: Callable[..., SimpleNamespace],
    tiny_yaml: Path,
    tmp_path: Path,
) -> None:
    runs = tmp_path / "tiny"
    shutil.copytree(fitted.folder.parent, runs)
    foreign = ("version_0_backup", "version_1.old", "version_", "version_last")
    for name in foreign:
        shutil.copytree(fitted.folder, runs / name)
    given = ("--config", tiny_yaml, "--trainer.default_root_dir", tmp_path)
    commands = [(word, *given, "--ckpt_path", "last") for word in ("validate", "test", "predict")]
    commands += [("fit", *given, "--trainer.fast_dev_run", "true")]
    commands += [("export", runs / "version_0", "--client", "hall", tmp_path / "exported")]
    for command in commands:
        ran = mlecs(*command)
        assert ran.code == 0, ran.err
    assert {p.name for p in runs.iterdir()} == {"version_0", "version_1", *foreign}
    assert (runs / "version_0" / "predictions.jsonl").exists()
    assert len(read_runs([runs])) == 2


# What can be changed from the command line --------------------------------------------------------


def test_overrides_reach_the_models(fit: Fit, tmp_path: Path) -> None:
    ran = fit(
        tmp_path,
        *("--clients.kitchen.modalities", "[fourier]"),
        *("--edge.lora.r", 4),
        *("--algorithm.components", "[amt,mma,se_ccl]"),
        *("--data.init_args.sample_rate", 0.8),
        *("--edge.optimizer.init_args.lr", 0.5),
        *("--trainer.fast_dev_run", "true"),
    )
    clients = ran.summary["clients"]
    assert {n: c["modalities"] for n, c in clients.items()} == {
        "kitchen": ["fourier"],
        "hall": ["fourier"],
    }
    assert [(ran.adapter(p)["r"], ran.adapter(p)["lora_alpha"]) for p in clients] == [(4, 4)] * 2
    # Without ccl no representation goes down.
    assert ran.summary["communication"]["by_component"]["downlink"].keys() == {"adapter", "header"}
    assert ran.summary["rounds"] == 1
    assert not (ran.folder / "checkpoints").exists()


def test_a_client_overrides_a_part_of_the_edge(fit: Fit, tmp_path: Path) -> None:
    ran = fit(
        tmp_path,
        *("--algorithm.aggregation", "stack"),
        *("--clients.hall.lora", "{r: 3}"),
        *("--clients.hall.optimizer.init_args.lr", "1e-3"),
        *("--clients.kitchen.extractors.pixels", "{class_path: ImageCNN, init_args: {width: 7}}"),
        *("--trainer.max_rounds", 1),
    )
    lora = {p: ran.adapter(p) for p in ("kitchen", "hall")}
    assert {p: (c["r"], c["lora_alpha"]) for p, c in lora.items()} == {
        "kitchen": (2, 4),
        "hall": (3, 4),
    }
    clients = ran.checkpoint(0)["clients"]
    rates = {p: state["optimizer"]["param_groups"][0]["lr"] for p, state in clients.items()}
    assert rates == {"kitchen": 0.01, "hall": 0.001}
    # The extractor's width shows in what leads from it into the latent space.
    widths = {
        (party, name.split(".")[-2]): tensor.shape[1]
        for party, state in clients.items()
        for name, tensor in state["model"].items()
        if ".projections." in name and name.endswith("weight")
    }
    assert widths == {("kitchen", "pixels"): 7, ("kitchen", "profile"): 64, ("hall", "fourier"): 64}


def test_clients_can_be_drawn(fit: Fit, tmp_path: Path) -> None:
    ran = fit(
        tmp_path,
        *("--clients", "{count: 5, modality_rate: 0.7, seed: 1}"),
        *("--trainer.fast_dev_run", "true"),
    )
    drawn = draw_client_modalities(["pixels", "profile", "fourier"], 5, rate=0.7, seed=1)
    assert {n: tuple(c["modalities"]) for n, c in ran.summary["clients"].items()} == drawn
    assert ran.config["clients"] == {"count": 5, "modality_rate": 0.7, "seed": 1}


# The pocket SLM has three layers of width 96, which PEFT adapts in c_attn (96 -> 288): A has r * 96
# values and B r * 288.
def _adapter_bytes(rank: int, *, a: bool = True) -> int:
    return 3 * rank * (96 * a + 288) * 4


@pytest.mark.parametrize(
    ("algorithm", "up", "down"),
    [
        (["MLECS"], _adapter_bytes(2), _adapter_bytes(2)),
        *(
            pytest.param(words, _adapter_bytes(2), _adapter_bytes(2), marks=pytest.mark.slow)
            for words in (
                ["mlecs_lightning.algorithms.MLECS"],
                ["MLECS", "--algorithm.aggregation", "stack"],
                ["MLECS", "--algorithm.aggregation=svd"],
            )
        ),
        (
            ["MLECS", "--algorithm.init_args.aggregation", "freeze_a"],
            _adapter_bytes(2, a=False),
            _adapter_bytes(2, a=False),
        ),
        (["FedAvg"], _adapter_bytes(2), _adapter_bytes(2)),
        (["Standalone"], 0, 0),
        pytest.param(["StandalonePublic"], 0, 0, marks=pytest.mark.slow),
        (["Centralized"], 0, 0),
    ],
    ids=lambda value: "-".join(v.split(".")[-1] for v in value) if isinstance(value, list) else "",
)
def test_every_algorithm_runs_and_sends_what_it_should(
    fit: Fit, tmp_path: Path, algorithm: list[str], up: int, down: int
) -> None:
    ran = fit(tmp_path, "--trainer.fast_dev_run", "true", "--algorithm", *algorithm)
    assert ran.summary["algorithm"] == algorithm[0].rpartition(".")[2]
    assert ran.config["algorithm"]["init_args"]["steps"]["private"] == 1  # the file's, not 40
    parts: dict[str, dict[str, int]] = ran.summary["communication"]["by_component"]
    sent = {way: parts.get(way, {}).get("adapter", 0) for way in ("uplink", "downlink")}
    assert sent == {"uplink": 2 * up, "downlink": 2 * down}  # two clients, one round
    anchors = parts.get("downlink", {}).get("fused", 0)
    # One public pass of a batch of 8 for each client, in vectors of 16 floats.
    assert anchors == (2 * 8 * 16 * 4 if ran.summary["algorithm"] == "MLECS" else 0)
    assert ("communication: none" in ran.out) == (up == 0)


# Parts of one's own -------------------------------------------------------------------------------

OWN = '''
"""An algorithm, a data set and an extractor outside the package."""

import torch
from sklearn.datasets import load_digits

from mlecs_lightning.algorithms import FedAvg
from mlecs_lightning.data import Digits, FederatedDataModule
from mlecs_lightning.data.base import Pools
from mlecs_lightning.data.table import SampleTable
from mlecs_lightning.types import ModalitySpec


class Equal(FedAvg):
    """FedAvg in which every client counts the same."""

    def __init__(self, *, share: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.share = share

    def weight(self, message):
        return self.share


class Rows(FederatedDataModule):
    """The digits as a series of eight rows, in the words of the packaged data set."""

    def __init__(self, *, samples: int = 200, **kwargs):
        super().__init__(partition="dirichlet", **kwargs)
        self.modalities = {"rows": ModalitySpec("series", (8, 8))}
        self.classes = Digits().classes
        self.samples = samples

    def load_pools(self):
        digits = load_digits()
        labels = torch.from_numpy(digits.target)[: self.samples]
        ids = tuple(f"row-{i}" for i in range(self.samples))
        table = SampleTable(
            ids=ids,
            modalities=("rows",),
            inputs={"rows": torch.from_numpy(digits.images[: self.samples]).float() / 16},
            present=torch.ones(self.samples, 1, dtype=torch.bool),
            instructions=("describe the digit .",) * self.samples,
            targets=tuple(f"a bold {self.classes[y]} with more ink above ." for y in labels),
            labels=labels,
            domains=("all",) * self.samples,
            groups=ids,
        )
        return Pools(*(table.select(list(range(k, self.samples, 3))) for k in range(3)))

    def read_label(self, text):
        return Digits().read_label(text)

    def pretraining_pairs(self):
        return Digits().pretraining_pairs()


class Mean(torch.nn.Module):
    """The mean over time, times a number that trains."""

    def __init__(self, spec, *, scale: float = 1.0):
        super().__init__()
        self.out_features = spec.shape[0]
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def forward(self, x):
        return x.mean(-1) * self.scale
'''

OWN_YAML = """
data: {class_path: own_parts.Rows, init_args: {samples: 150, batch_size: 8, eval_batch_size: 8}}
algorithm: {class_path: own_parts.Equal, init_args: {share: 0.5, steps: {warmup: 1, public: 1}}}
edge: {extractors: {rows: {class_path: own_parts.Mean, init_args: {scale: 3.0}}}}
clients:
  kitchen: {modalities: [rows]}
  hall: {modalities: [rows], extractors: {rows: {class_path: SeriesCNN, init_args: {width: 12}}}}
"""


def test_parts_outside_the_package_come_in_by_class_path(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_parts.py").write_text(OWN)
    (tmp_path / "own.yaml").write_text(OWN_YAML)
    monkeypatch.syspath_prepend(tmp_path)
    ran = fit(tmp_path, "--config", tmp_path / "own.yaml", "--trainer.max_rounds", 1)
    assert ran.summary["algorithm"] == "Equal"
    assert ran.config["algorithm"]["init_args"]["share"] == 0.5
    assert {n: c["modalities"] for n, c in ran.summary["clients"].items()} == {
        "kitchen": ["rows"],
        "hall": ["rows"],
    }
    clients: dict[str, Any] = ran.checkpoint(0)["clients"]
    scale = clients["kitchen"]["model"]["extractors.rows.scale"]
    # It has trained: two steps of AdamW at 0.01, which have a bound whatever the gradients are.
    assert 0 < abs(float(scale) - 3.0) < 0.1
    assert clients["hall"]["model"]["extractors.rows.head.weight"].shape[0] == 12


# Help ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_help_names_the_keys(mlecs: Callable[..., SimpleNamespace], subcommand: str) -> None:
    said = mlecs(subcommand, "--help")
    assert (said.code, said.err) == (0, "")
    keys = ("--trainer.max_rounds", "--server.optimizer", "--server.lora.r", "--clients")
    assert [key for key in (*keys, "--ckpt_path") if key not in said.out] == []
    lines = said.out.splitlines()
    assert len(lines) < 150
    assert max(map(len, lines)) <= 110
    assert "--warmup." not in said.out
    assert " ... " not in said.out.replace("--config ... ", "")


def test_the_help_of_a_key_is_its_whole_first_sentence(
    mlecs: Callable[..., SimpleNamespace],
) -> None:
    whole = " ".join(mlecs("fit", "--help").out.split())
    described = inspect.getdoc(FederatedTrainer.__init__) or ""
    told = re.findall(r"^    (\w+): (.*?)(?=\n    \w|\n\n)", described, re.MULTILINE | re.DOTALL)
    seen = 0
    for key, text in told:
        plain = " ".join(text.replace("`", "").split())
        sentence = re.split(r"(?<=[a-z0-9)\]])[.;] ", plain)[0].rstrip(".")
        if f"--trainer.{key} " in whole:  # a group has a line for each of its keys
            assert f"--trainer.{key} {sentence}" in whole
            seen += 1
    assert seen > 25


def test_the_full_help_has_every_option(mlecs: Callable[..., SimpleNamespace]) -> None:
    said = mlecs("fit", "--help_all")
    assert (said.code, said.err) == (0, "")
    for key in ("--edge.lora.r", "--warmup.max_steps", "type: float", "known subclasses"):
        assert key in said.out


def test_a_ready_configuration_has_a_name(
    mlecs: Callable[..., SimpleNamespace], repo_root: Path
) -> None:
    named = mlecs("fit", "--config", "urfall/mlecs", "--print_config")
    by_path = mlecs("fit", "--config", repo_root / "configs/urfall/mlecs.yaml", "--print_config")
    assert (named.code, named.out) == (0, by_path.out)
    wrong = mlecs("fit", "--config", "quikstart")
    assert wrong.code == 1
    assert "'quikstart' does not exist" in wrong.err
    assert "quickstart, quickstart_cdcca" in wrong.err
