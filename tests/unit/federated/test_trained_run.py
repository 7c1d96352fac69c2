"""What a run leaves to Python: the trainer after `fit`, and a run loaded from its folder."""

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mlecs_lightning import FedAvg, TrainedRun, load_run
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.federated.trained_run import Results


@pytest.fixture(
    scope="module",
    params=[
        "checkpoints",
        pytest.param("none", marks=pytest.mark.slow),
        pytest.param("disk", marks=pytest.mark.slow),
    ],
)
def fitted(
    request: pytest.FixtureRequest, tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """A trainer after two rounds, with its algorithm and data."""
    trainer = tiny.trainer(
        tmp_path_factory.mktemp("fitted"),
        max_rounds=2,
        logger=True,
        check_val_every_n_rounds=1,
        enable_checkpointing=request.param != "none",
        store="disk" if request.param == "disk" else "memory",
    )
    data, algorithm = tiny.data(), FedAvg(steps=tiny.steps())
    model = tiny.model(max_new_tokens=8)
    federation = tiny.parties(server=model, edge=model)
    returned = trainer.fit(algorithm, data, federation)
    return SimpleNamespace(
        trainer=trainer,
        data=data,
        algorithm=algorithm,
        federation=federation,
        returned=returned,
        kind=request.param,
    )


def questions(fitted: SimpleNamespace, modalities: tuple[str, ...]) -> list[dict[str, object]]:
    test = fitted.data.pools.test
    return [{m: test.inputs[m][row] for m in modalities} for row in range(3)]


def test_a_trainer_tells_what_the_files_of_its_run_tell(fitted: SimpleNamespace) -> None:
    trainer, folder = fitted.trainer, fitted.trainer.trained.path
    assert trainer.summary == fitted.returned == json.loads((folder / "summary.json").read_text())
    logged = list(csv.DictReader((folder / "metrics.csv").open()))[1:]  # the first is the warm-up
    assert [row["round"] for row in trainer.metrics] == [0, 1]
    for row, written in zip(trainer.metrics, logged, strict=True):
        assert row["clients/val/loss"] == pytest.approx(float(written["clients/val/loss"]))


def test_models_are_copies_that_do_not_change_each_other(fitted: SimpleNamespace) -> None:
    kitchen, study = (fitted.trainer.client(name) for name in ("kitchen", "study"))
    own, other = kitchen.module.trainable_state(), study.module.trainable_state()
    assert own.keys() == other.keys(), "one architecture"
    assert any(not torch.equal(own[name], other[name]) for name in own)
    again = fitted.trainer.client("kitchen").module.trainable_state()
    assert all(torch.equal(own[name], again[name]) for name in own)
    assert fitted.trainer.trained.clients == ("kitchen", "hall", "study")


@pytest.mark.parametrize("party", ["kitchen", "hall", "server"])
def test_a_loaded_run_has_the_models_of_its_trainer(fitted: SimpleNamespace, party: str) -> None:
    def model(run: TrainedRun | Results):  # noqa: ANN202
        return run.server if party == "server" else run.client(party)

    if fitted.kind == "none":
        with pytest.raises(ConfigurationError, match="no checkpoint of a whole round"):
            load_run(fitted.trainer.trained.path)
        return
    loaded = load_run(fitted.trainer.trained.path)
    assert loaded.summary == fitted.trainer.summary
    assert loaded.metrics == fitted.trainer.metrics
    mine, its = model(fitted.trainer), model(loaded)
    expected = mine.module.trainable_state()
    torch.testing.assert_close(its.module.trainable_state(), expected, rtol=0, atol=0)
    samples = questions(fitted, mine.modalities)
    assert its.ask_batch(samples) == mine.ask_batch(samples)


def test_they_answer_as_predict_does(fitted: SimpleNamespace) -> None:
    if fitted.kind == "none":
        pytest.skip("predict reads a checkpoint")
    trainer, test = fitted.trainer, fitted.data.pools.test
    rows = trainer.predict(fitted.algorithm, fitted.data, fitted.federation, "last")
    for party in ("hall", "server"):
        model = trainer.server if party == "server" else trainer.client(party)
        said = {row["id"]: row["prediction"] for row in rows if row["party"] == party}
        places = [test.ids.index(sample) for sample in said]
        samples = [{m: test.inputs[m][place] for m in model.modalities} for place in places]
        assert model.ask_batch(samples) == list(said.values())
        assert len(said) == 8


def test_before_fit_there_is_nothing(tiny: SimpleNamespace, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path)
    for name in ("summary", "metrics", "server"):
        with pytest.raises(RuntimeError, match="no results yet: call fit first"):
            getattr(trainer, name)
    with pytest.raises(RuntimeError, match="no results yet"):
        trainer.client("kitchen")


def test_an_unknown_client_is_named(mlecs_run: SimpleNamespace) -> None:
    with pytest.raises(ConfigurationError, match=r"'attic' is none of \['kitchen', 'hall', 'stu"):
        load_run(mlecs_run.folder).client("attic")


def test_what_is_no_finished_run_is_refused(mlecs_run: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"{str(tmp_path)!r} has no checkpoint")):
        load_run(tmp_path)
    run = Path(shutil.copytree(mlecs_run.folder, tmp_path / "run"))
    summary = run / "summary.json"
    values = json.loads(summary.read_text())
    (run / "SHA256SUMS").unlink()
    summary.write_text(json.dumps({**values, "rounds": values["rounds"] - 1}))
    with pytest.raises(ConfigurationError, match=r"is of 1 rounds and .* of 2: the run has gone"):
        load_run(run)
    summary.unlink()
    with pytest.raises(ConfigurationError, match=r"has no summary\.json, so it has not ended"):
        load_run(run)


@pytest.mark.slow
def test_the_example_of_the_guide_runs(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (repo_root / "docs" / "python.md").read_text()
    code = compile(page.split("```python\n")[1].split("```")[0], "python.md", "exec")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["again"].summary == names["trainer"].summary  # type: ignore[attr-defined]
