"""Parties whose evaluation fails: a fault of that party alone, and no training is lost."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from mlecs_lightning import Digits
from mlecs_lightning.algorithms import FedAvg
from mlecs_lightning.callbacks import FederatedCallback
from mlecs_lightning.clients import FederationModels
from mlecs_lightning.data import DomainStream, SampleTable
from mlecs_lightning.data.base import Split
from mlecs_lightning.evaluation.parties import Evaluator
from mlecs_lightning.rounds import EvaluationError

Spoil = Callable[[SampleTable], SampleTable]


def with_texts(**texts: str) -> Spoil:
    """Return a function that replaces texts of all samples."""

    return lambda table: replace(table, **{k: (text,) * len(table) for k, text in texts.items()})


def cut(table: SampleTable) -> SampleTable:
    """Take inputs away from every sample: no extractor takes what is left."""
    return replace(table, inputs={m: x[..., :2] for m, x in table.inputs.items()})


# What is wrong with the samples, whether an answer is spoilt, too, and what is said of it.
SPOILT: dict[str, tuple[Spoil, bool, str]] = {
    "target": (with_texts(targets="seven " * 300), False, "ValueError: .* has 256: shorten"),
    "instruction": (with_texts(instructions="digit " * 300), True, "ValueError: .* has 256"),
    "input": (cut, True, "RuntimeError: "),
}


NOTED: list[tuple[str, str]] = []
"""What went to the clients' own files: whole texts, which nobody else is told."""


@pytest.fixture(autouse=True)
def _nothing_noted() -> None:
    NOTED.clear()


def evaluator(data: Digits) -> Evaluator:
    fabric = Fabric(accelerator="cpu", devices=1)
    judge = Evaluator(data, fabric=fabric, bertscore=False, limit=1)
    judge.note = lambda client, text: NOTED.append((client, text))
    return judge


@pytest.fixture
def data(tiny: SimpleNamespace) -> Digits:
    return tiny.data()


@pytest.fixture
def federation(tiny: SimpleNamespace, data: Digits) -> FederationModels:
    return tiny.build(FedAvg(), None, data)


# One evaluation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("spoil", "_", "said"), SPOILT.values(), ids=SPOILT.keys())
def test_a_client_that_cannot_be_validated_is_its_own_fault(
    spoil: Spoil, _: bool, said: str, data: Digits, federation: FederationModels
) -> None:
    sound = evaluator(data).validate(federation)
    data._private["hall"]["val"] = spoil(data.private("hall", "val"))
    judge = evaluator(data)
    with pytest.warns(UserWarning, match="1 of 3 clients have no scores"):
        values = judge.validate(federation, round=4)
    (fault,) = judge.failures.failures
    assert (fault.client, fault.kind, fault.round) == ("hall", "error", 4)
    assert fault.reason == f"client 'hall', stage 'validation': {said.partition(':')[0]}"
    ((client, text),) = NOTED
    assert client == "hall"
    assert re.search(said, text)
    # Absent, not 0; the others as before.
    assert not [name for name in values if name.startswith("clients/hall/")]
    same = {n: v for n, v in sound.items() if n.startswith(("clients/kitchen/", "clients/study/"))}
    assert {n: values[n] for n in same} == same
    mean = (sound["clients/kitchen/val/loss"] + sound["clients/study/val/loss"]) / 2
    assert values["clients/val/loss"] == pytest.approx(mean)
    assert {n: v for n, v in values.items() if n.startswith("server/")} == {
        n: v for n, v in sound.items() if n.startswith("server/")
    }


@pytest.mark.parametrize("kind", [k for k, (_, answers, _) in SPOILT.items() if answers])
def test_a_client_that_cannot_be_tested_is_its_own_fault(
    kind: str, data: Digits, federation: FederationModels
) -> None:
    sound = evaluator(data).test(federation)
    spoil, _, said = SPOILT[kind]
    data._private["kitchen"]["test"] = spoil(data.private("kitchen", "test"))
    judge = evaluator(data)
    with pytest.warns(UserWarning, match="1 of 3 clients have no scores"):
        results = judge.test(federation, round=2)
    (fault,) = judge.failures.failures
    assert (fault.client, fault.round) == ("kitchen", 2)
    assert fault.reason == f"client 'kitchen', stage 'test': {said.partition(':')[0]}"
    assert [client for client, text in NOTED if re.search(said, text)] == ["kitchen"]
    modalities = ["pixels", "profile"]
    assert results["clients"]["kitchen"] == {"modalities": modalities, "own": {}, "all": {}}
    for client in ("hall", "study"):
        assert results["clients"][client] == sound["clients"][client]
    for view in ("own", "all"):
        parts = [sound["clients"][c][view]["rouge_lsum"] for c in ("hall", "study")]
        assert results["mean"][view]["rouge_lsum"] == pytest.approx(sum(parts) / 2)
    assert results["server"] == sound["server"]
    # The constant sentence is one of those clients that have scores.
    train, test = data.private("hall"), data.private("hall", "test")
    constants = [
        judge.constant(train, test),
        judge.constant(data.private("study"), data.private("study", "test")),
    ]
    mean = sum(c["rouge_lsum"] for c in constants) / 2
    assert results["constant"]["own"]["rouge_lsum"] == pytest.approx(mean)


def test_a_state_that_cannot_be_read_back_is_the_client_s_fault(
    data: Digits, federation: FederationModels
) -> None:
    federation.store.put("study", {"model": {}, "optimizer": {}}, round=0)
    judge = evaluator(data)
    with pytest.warns(UserWarning, match="1 of 3 clients"):
        judge.test(federation)
    assert [fault.client for fault in judge.failures.failures] == ["study"]
    assert judge.failures.failures[0].reason == "client 'study', stage 'test': KeyError"
    assert "KeyError: " in NOTED[0][1]


@pytest.mark.parametrize("stage", ["validation", "test"])
def test_where_no_client_can_be_judged_that_is_an_error(
    stage: str, data: Digits, federation: FederationModels
) -> None:
    for client in federation.clients:
        for split in ("val", "test"):
            data._private[client][split] = cut(data.private(client, split))
    judge = evaluator(data)
    with pytest.raises(EvaluationError, match=r"(?s)no client.*kitchen.*hall.*study") as caught:
        _ = judge.validate(federation) if stage == "validation" else judge.test(federation)
    assert f"stage '{stage}': RuntimeError" in str(caught.value)
    assert len(judge.failures.failures) == 3


def test_clients_without_samples_have_not_failed(
    data: Digits, federation: FederationModels
) -> None:
    for client in ("kitchen", "study"):
        data._private[client]["val"] = data.private(client, "val").select([])
    assert "clients/hall/val/loss" in evaluator(data).validate(federation)
    data._private["hall"]["val"] = cut(data.private("hall", "val"))
    with pytest.raises(EvaluationError, match="no client could be evaluated"):
        evaluator(data).validate(federation)


@pytest.mark.parametrize("stage", ["validation", "test"])
@pytest.mark.parametrize("kind", [k for k, (_, answers, _) in SPOILT.items() if answers])
def test_a_server_that_cannot_be_judged_is_named(
    stage: str,
    kind: str,
    data: Digits,
    federation: FederationModels,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil, _, said = SPOILT[kind]
    whole = data.public
    monkeypatch.setattr(
        data,
        "public",
        lambda split="train", **o: (
            spoil(whole(split, **o)) if split != "train" else whole(split, **o)
        ),
    )
    judge = evaluator(data)
    with pytest.raises(EvaluationError) as caught:
        _ = judge.validate(federation, round=3) if stage == "validation" else judge.test(federation)
    assert re.search(f"server, stage '{stage}': {said}", str(caught.value))
    assert judge.failures.failures == []


# In a run -----------------------------------------------------------------------------------------


@dataclass
class Switch(FederatedCallback):
    """Spoils tables from a round on; whoever is named is spoilt in the named splits."""

    at: int
    parties: tuple[str, ...]
    splits: tuple[str, ...]
    on: bool = False

    def on_round_start(self, *, round: int, participants: tuple[str, ...]) -> None:
        self.on = round >= self.at

    def spoils(self, party: str, split: str) -> bool:
        return self.on and party in self.parties and split in self.splits


class Fragile(Digits):
    """Digits whose held-out samples break while a run is under way."""

    switch: Switch

    def private(
        self, client: str, split: Split = "train", *, round: int | None = None
    ) -> SampleTable:
        table = super().private(client, split, round=round)
        return cut(table) if self.switch.spoils(client, split) else table

    def public(self, split: Split = "train", **options: Any) -> SampleTable:
        table = super().public(split, **options)
        return cut(table) if self.switch.spoils("server", split) else table


Fit = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def run(tiny: SimpleNamespace) -> Fit:
    """Fit two rounds with a validation behind each."""

    def call(
        root: Path, switch: Switch, *, ckpt_path: str | None = None, **values: Any
    ) -> dict[str, Any]:
        data = tiny.data(Fragile, **values)
        data.switch = switch
        trainer = tiny.trainer(
            root,
            max_rounds=2,
            check_val_every_n_rounds=1,
            enable_checkpointing=True,
            callbacks=[switch],
        )
        algorithm = FedAvg(steps=tiny.steps())
        return trainer.fit(algorithm, data, tiny.parties(), ckpt_path)  # type: ignore[no-any-return]

    return call


@pytest.fixture(scope="module")
def whole(run: Fit, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What two rounds come to in which nothing breaks."""
    root = tmp_path_factory.mktemp("whole")
    assert run(root, Switch(99, (), ()))["faults"]["error"] == 0
    return weights(saved(root, 1))


def saved(root: Path, number: int) -> dict[str, Any]:
    (path,) = root.rglob(f"round={number:04d}.ckpt")
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    parties = {"server": state["server"], **state["clients"]}
    return {f"{p}/{k}": t for p, each in parties.items() for k, t in each["model"].items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_run_goes_on_without_the_scores_of_a_client_and_trains_the_same(
    run: Fit, whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="clients have no scores"):
        summary = run(tmp_path, Switch(1, ("hall",), ("val", "test")))
    state = saved(tmp_path, 1)
    first, second = state["history"]
    assert "clients/hall/val/loss" in first
    assert "clients/hall/val/loss" not in second
    assert second["clients/val/loss"] > 0
    assert summary["clients"]["hall"]["own"] == summary["clients"]["hall"]["all"] == {}
    assert summary["clients"]["study"]["own"]
    stages = [event["stage"] for event in summary["faults"]["events"]]
    assert stages == ["validation", "test"]
    assert (summary["faults"]["error"], summary["rounds"]) == (2, 2)
    assert equal(weights(state), whole)


@pytest.mark.parametrize(
    ("parties", "said"),
    [(("server",), "server, stage 'validation'"), (("kitchen", "hall", "study"), "no client")],
)
def test_a_round_that_cannot_be_judged_is_saved_and_gone_on_from(
    parties: tuple[str, ...],
    said: str,
    run: Fit,
    whole: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    with pytest.raises(EvaluationError, match=f"^round 0: {said}") as caught:
        run(tmp_path, Switch(0, parties, ("val",)))
    assert "--ckpt_path last goes on" in str(caught.value)
    (row,) = saved(tmp_path, 0)["history"]
    assert not [name for name in row if "/val/" in name]
    # The cause is mended: the next round goes on from what has been trained.
    assert run(tmp_path, Switch(99, (), ()), ckpt_path="last")["rounds"] == 2
    assert equal(weights(saved(tmp_path, 1)), whole)


@pytest.mark.parametrize("parties", [("server",), ("kitchen", "hall", "study")])
def test_a_test_that_fails_leaves_checkpoint_and_adapters(
    parties: tuple[str, ...], run: Fit, whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match="stage 'test'"):
        run(tmp_path, Switch(1, parties, ("test",)))
    assert equal(weights(saved(tmp_path, 1)), whole)
    names = {path.parent.name for path in tmp_path.rglob("adapter_model.safetensors")}
    assert names == {"server", "kitchen", "hall", "study"}


def test_a_client_that_fails_on_a_stream_has_no_view_of_it(run: Fit, tmp_path: Path) -> None:
    stream = {"schedule": DomainStream({"hall": ["bold"]}), "partition": "domain"}
    with pytest.warns(UserWarning, match="stage 'stream'"):
        summary = run(tmp_path, Switch(1, ("hall",), ("test",)), **stream)
    rows = saved(tmp_path, 1)["history"]
    assert [any(k.startswith("clients/hall/stream/") for k in row) for row in rows] == [True, False]
    assert all("stream/all/accuracy" in row for row in rows)
    assert set(summary["stream"]["clients"]) == {"kitchen", "hall", "study"}
