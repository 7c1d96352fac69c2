import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from mlecs_lightning.algorithms import FedAvg
from mlecs_lightning.data import SampleTable
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.evaluation.parties import Evaluator
from mlecs_lightning.federated.run_folder import RunFolder
from mlecs_lightning.federated.summary import communication
from mlecs_lightning.rounds import EvaluationError, Learner
from mlecs_lightning.storage.digests import SUMS
from mlecs_lightning.wire.encoding import decode
from mlecs_lightning.wire.ledger import Ledger
from tests.unit.updates import dense, mean, relative_error

CLIENTS = {"kitchen": ["pixels", "profile"], "hall": ["fourier"], "study": ["pixels", "profile"]}


@pytest.fixture(scope="module")
def checkpoint(mlecs_run: SimpleNamespace) -> dict[str, Any]:
    path = mlecs_run.folder / "checkpoints" / "round=0001.ckpt"
    return torch.load(path, weights_only=True)


# The folder -----------------------------------------------------------------------------------


def test_the_folder_holds_what_is_documented(mlecs_run: SimpleNamespace) -> None:
    names = {p.name for p in mlecs_run.folder.iterdir() if not p.name.startswith("events.out")}
    assert names == {
        *("config.yaml", "metrics.csv", "checkpoints", "adapters", "summary.json", "SHA256SUMS")
    }
    assert {p.name for p in (mlecs_run.folder / "adapters").iterdir()} == {*CLIENTS, "server"}
    assert yaml.safe_load((mlecs_run.folder / "config.yaml").read_text()) == {"seed_everything": 0}


def test_metrics_hold_the_warm_up_and_every_value_of_every_round(
    mlecs_run: SimpleNamespace, checkpoint: dict[str, Any]
) -> None:
    with (mlecs_run.folder / "metrics.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    assert [row.pop("step") for row in rows] == [0, 1, 2]
    assert list(rows[0]) == [
        *("server/warmup/lm_llm", "server/warmup/lm_slm", "server/warmup/loss")
    ]
    *ends, now = checkpoint["seconds"].tolist()
    assert [row.pop("seconds") for row in rows[1:]] == pytest.approx(ends)
    assert 0 < ends[0] < ends[1] < now
    for row, logged in zip(checkpoint["history"], rows[1:], strict=True):
        assert logged == pytest.approx(row)
    assert {"clients/hall/ccl/volume", "server/val/loss", "aggregate/error"} <= rows[1].keys()


def test_tensorboard_holds_the_same_under_the_round(
    mlecs_run: SimpleNamespace, checkpoint: dict[str, Any]
) -> None:
    events = EventAccumulator(str(mlecs_run.folder)).Reload()
    for name in ("server/public/loss", "clients/val/loss"):
        read = [(e.step, e.value) for e in events.Scalars(name)]
        expected = [(n, row[name]) for n, row in enumerate(checkpoint["history"], start=1)]
        assert read == [(n, pytest.approx(v)) for n, v in expected]


@pytest.mark.parametrize("party", [*CLIENTS, "server"])
def test_an_adapter_loads_onto_its_base_and_says_the_same(
    tiny: SimpleNamespace, mlecs_run: SimpleNamespace, checkpoint: dict[str, Any], party: str
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny.pocket())
    tokens = torch.arange(2, 14).view(2, 6)
    with torch.no_grad():
        bare = base(tokens).logits
        folder = str(mlecs_run.folder / "adapters" / party)
        loaded = PeftModel.from_pretrained(base, folder)(tokens).logits
        federation = tiny.build(mlecs_run.algorithm)
        learner = federation.server if party == "server" else federation.edge(party)
        state = checkpoint["server"] if party == "server" else checkpoint["clients"][party]
        learner.load_state_dict(state)
        expected = learner.module.eval().tower().backbone.lm(tokens).logits
    torch.testing.assert_close(loaded, expected)
    assert not torch.allclose(loaded, bare)


@pytest.mark.parametrize("party", [*CLIENTS, "server"])
def test_an_adapter_says_nothing_of_this_machine(
    mlecs_run: SimpleNamespace, cache_dir: Path, party: str
) -> None:
    folder = mlecs_run.folder / "adapters" / party
    names = {path.name for path in folder.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", SUMS}  # no card of PEFT's
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "pocket/slm"
    assert config["revision"] is None
    for path in folder.iterdir():
        for place in (cache_dir, mlecs_run.root, Path.home()):
            assert str(place).encode() not in path.read_bytes()


def test_a_new_run_gets_the_next_version(tmp_path: Path) -> None:
    for version in ("version_2", "version_10"):
        (tmp_path / "x" / version).mkdir(parents=True)
    assert RunFolder(tmp_path, "x", version=None, logger=False).path.name == "version_11"
    assert RunFolder(tmp_path, "y", version=None, logger=False).path.name == "version_0"
    again = RunFolder(tmp_path, "x", version="version_2", logger=False)
    assert again.checkpoints == tmp_path / "x" / "version_2" / "checkpoints"


def test_predictions_are_written_for_every_party(
    tiny: SimpleNamespace, mlecs_run: SimpleNamespace, tmp_path: Path
) -> None:
    shutil.copytree(mlecs_run.root, tmp_path, dirs_exist_ok=True)
    data = tiny.data()
    rows = tiny.trainer(tmp_path).predict(mlecs_run.algorithm, data, tiny.parties(), "last")
    assert rows.path == tmp_path / "tiny" / "version_0" / "predictions.jsonl"
    assert rows == [json.loads(line) for line in rows.path.read_text().splitlines()]
    test = data.public("test")
    size = data.eval_batch_size
    expected = [
        (party, i, target)
        for party in (*CLIENTS, "server")
        for i, target in zip(test.ids[:size], test.targets[:size], strict=True)
    ]
    assert [(r["party"], r["id"], r["target"]) for r in rows] == expected
    assert all(set(r) == {"party", "id", "prediction", "target"} for r in rows)
    alone = tiny.trainer(tmp_path).predict(
        mlecs_run.algorithm, data, tiny.parties(), "last", client="hall"
    )
    assert alone == [row for row in rows if row["party"] == "hall"]
    with pytest.raises(ConfigurationError, match=r"'attic' is not in the checkpoint; allowed: \["):
        tiny.trainer(tmp_path).predict(
            mlecs_run.algorithm, data, tiny.parties(), "last", client="attic"
        )


@pytest.mark.parametrize("silent", [("hall",), ("server",), ("kitchen", "hall", "study", "server")])
def test_a_party_that_cannot_answer_is_named_and_the_others_are_heard(
    silent: tuple[str, ...],
    tiny: SimpleNamespace,
    mlecs_run: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The samples of some have inputs that no extractor takes."""
    shutil.copytree(mlecs_run.root, tmp_path, dirs_exist_ok=True)
    data = tiny.data()
    predictions = Evaluator.predictions

    def spoilt(judge: Evaluator, learner: Learner[Any], table: SampleTable) -> list[dict[str, str]]:
        inputs = {m: x[..., :2] if learner.name in silent else x for m, x in table.inputs.items()}
        return predictions(judge, learner, replace(table, inputs=inputs))

    monkeypatch.setattr(Evaluator, "predictions", spoilt)
    trainer = tiny.trainer(tmp_path)
    if len(silent) == 4:
        with pytest.raises(
            EvaluationError, match=r"(?s)no party.*kitchen.*server, stage 'predict'"
        ):
            trainer.predict(mlecs_run.algorithm, data, tiny.parties(), "last")
        return
    with pytest.warns(UserWarning, match=f"1 of 4 .*\\n{silent[0]}, stage 'predict': RuntimeError"):
        rows = trainer.predict(mlecs_run.algorithm, data, tiny.parties(), "last")
    heard = [party for party in (*CLIENTS, "server") if party not in silent]
    assert list(dict.fromkeys(row["party"] for row in rows)) == heard


# The summary ----------------------------------------------------------------------------------


def test_summary_has_its_schema_and_is_what_fit_returned(mlecs_run: SimpleNamespace) -> None:
    summary = json.loads((mlecs_run.folder / "summary.json").read_text())
    assert summary == mlecs_run.summary
    assert set(summary) == {
        *("algorithm", "seed", "rounds", "clients", "mean", "server", "constant", "checks"),
        *("aggregation_error", "faults", "communication", "seconds", "frozen", "alignment"),
        "confusion",
    }
    assert (summary["algorithm"], summary["seed"], summary["rounds"]) == ("MLECS", 0, 2)
    scores = {"rouge_lsum", "exact_match", "accuracy", "macro_f1"}
    for name, modalities in CLIENTS.items():
        client = summary["clients"][name]
        assert set(client) == {"modalities", "own", "all"}
        assert client["modalities"] == modalities
        assert set(client["own"]) == set(client["all"]) == scores
    assert set(summary["server"]) == scores
    assert set(summary["mean"]) == {"own", "all"}
    assert set(summary["constant"]) == {"own", "all", "server"}
    assert set(summary["communication"]) == {
        *("uplink_bytes", "downlink_bytes", "by_component"),
        *("ratio_of_edge_parameters", "ratio_of_server_parameters"),
        *("edge_parameter_bytes", "server_parameter_bytes"),
    }


def test_aggregation_errors_are_those_of_the_rounds(
    mlecs_run: SimpleNamespace, checkpoint: dict[str, Any]
) -> None:
    """By hand: A and B averaged apart against the mean of the products, from what came up."""
    errors = mlecs_run.summary["aggregation_error"]
    assert errors == [row["aggregate/error"] for row in checkpoint["history"]]
    up = [decode(data)[0] for way, _, data in mlecs_run.messages if way == "uplink"]
    for number, error in enumerate(errors):
        sent = [m.component("adapter") for m in up[3 * number : 3 * number + 3]]
        weights = [len(modalities) for modalities in CLIENTS.values()]
        apart = {k: mean(zip((s[k] for s in sent), weights, strict=True)) for k in sent[0]}
        layers = [k.removesuffix(".lora_A.weight") for k in apart if ".lora_A." in k]
        exact = [mean(zip((dense(s, n, 2.0) for s in sent), weights, strict=True)) for n in layers]
        missed = relative_error([dense(apart, n, 2.0) for n in layers], exact)
        assert error == pytest.approx(missed, rel=1e-4)


def test_ratios_are_bytes_of_a_clients_round_over_all_parameters(
    tiny: SimpleNamespace, mlecs_run: SimpleNamespace, checkpoint: dict[str, Any]
) -> None:
    """By hand: numbers of values in the files of the models, four bytes each."""
    frozen = sum(t.numel() for t in load_file(f"{tiny.pocket()}/model.safetensors").values())

    def size(state: dict[str, Any]) -> int:
        return 4 * (frozen + sum(t.numel() for t in state["model"].values()))

    wire = mlecs_run.summary["communication"]
    edges = {name: size(state) for name, state in checkpoint["clients"].items()}
    assert wire["edge_parameter_bytes"] == edges
    assert wire["server_parameter_bytes"] == size(checkpoint["server"])
    for way in ("uplink", "downlink"):
        rounds = {
            name: sum(len(d) for w, c, d in mlecs_run.messages if (w, c) == (way, name)) / 2
            for name in CLIENTS
        }
        edge = sum(rounds[name] / edges[name] for name in CLIENTS) / 3
        assert wire["ratio_of_edge_parameters"][way] == pytest.approx(edge)
        server = sum(rounds.values()) / 3 / size(checkpoint["server"])
        assert wire["ratio_of_server_parameters"][way] == pytest.approx(server)


def test_a_client_that_never_sent_anything_does_not_count(tiny: SimpleNamespace) -> None:
    federation, ledger = tiny.build(FedAvg()), Ledger()
    nothing = communication(ledger, federation)
    assert nothing["ratio_of_edge_parameters"] == {"uplink": 0.0, "downlink": 0.0}
    assert nothing["by_component"] == {"uplink": {}, "downlink": {}}
    ledger.add("uplink", "hall", {"adapter": 1000})
    share = communication(ledger, federation)["ratio_of_edge_parameters"]["uplink"]
    assert share == 1000 / federation.module("hall").parameter_bytes()
