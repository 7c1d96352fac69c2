import csv
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.precision import MixedPrecision

from mlecs_lightning import MLECS, FederatedTrainer
from mlecs_lightning.callbacks.monitor import Monitor
from mlecs_lightning.checkpoints import CheckpointError
from mlecs_lightning.checkpoints.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from mlecs_lightning.clients import ClientSettings
from mlecs_lightning.federated.run import clock_of

# Writing and reading --------------------------------------------------------------------------


def test_what_was_saved_is_read_back(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "checkpoints", {"x": torch.arange(3), "n": [1]}, round=7)
    assert path.name == "round=0007.ckpt"
    state = load_checkpoint(path)
    assert state["x"].tolist() == [0, 1, 2]
    assert (state["format_version"], state["round"], state["n"]) == (1, 7, [1])
    assert [p.name for p in path.parent.iterdir()] == ["round=0007.ckpt"]


def test_a_write_cut_short_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "version_0" / "checkpoints"
    kept = save_checkpoint(folder, {"x": 1}, round=0)

    def cut_short(state: object, file: Any) -> None:  # noqa: ANN401 - an open file
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", cut_short)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(folder, {"x": 2}, round=1)
    assert [p.name for p in folder.iterdir()] == ["round=0000.ckpt"]
    assert find_checkpoint("last", run_root=tmp_path) == kept
    assert load_checkpoint(kept)["x"] == 1
    assert load_checkpoint(save_checkpoint(folder, {"x": 3}, round=1))["x"] == 3
    assert sorted(p.name for p in folder.iterdir()) == ["round=0000.ckpt", "round=0001.ckpt"]


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    with pytest.raises(CheckpointError, match=r"no file '.*x\.ckpt'"):
        load_checkpoint(file)
    with pytest.raises(CheckpointError, match="no file"):
        load_checkpoint(tmp_path)
    file.write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=r"x\.ckpt' is damaged, or is no file of this"):
        load_checkpoint(file)
    torch.save(pytest.approx, file)  # code
    with pytest.raises(CheckpointError, match="is damaged, or is no file of this"):
        load_checkpoint(file)
    for state, version in (([1], None), ({"x": 1}, None), ({"format_version": 2}, 2)):
        torch.save(state, file)
        with pytest.raises(CheckpointError, match=f"format_version {version}, this .* reads 1"):
            load_checkpoint(file)


# last, best, a file ---------------------------------------------------------------------------


def run_root(tmp_path: Path, losses: dict[int, list[float]]) -> Path:
    """Write versions whose rounds had the given monitored values."""
    for version, values in losses.items():
        history = [{"round": n, "clients/val/loss": v} for n, v in enumerate(values)]
        for number in range(len(values)):
            state = {"monitor": "clients/val/loss", "history": history[: number + 1]}
            folder = tmp_path / f"version_{version}" / "checkpoints"
            save_checkpoint(folder, state, round=number)
    return tmp_path


def where(path: Path) -> tuple[str, str]:
    return path.parents[1].name, path.name


def test_last_is_the_highest_round_of_the_newest_version_with_any(tmp_path: Path) -> None:
    root = run_root(tmp_path, {2: [1.0] * 12, 10: [1.0, 1.0], 9: [1.0] * 20})
    (root / "version_11").mkdir()
    (root / "version_10" / "checkpoints" / "round=0005.tmp").touch()
    (root / "version_10" / "checkpoints" / "other.ckpt").touch()
    assert where(find_checkpoint("last", run_root=root)) == ("version_10", "round=0001.ckpt")


def test_best_is_the_round_with_the_lowest_value(tmp_path: Path) -> None:
    root = run_root(tmp_path, {0: [0.0, 9.0], 1: [3.0, 1.0, 2.0]})
    assert where(find_checkpoint("best", run_root=root)) == ("version_1", "round=0001.ckpt")
    (root / "version_1" / "checkpoints" / "round=0001.ckpt").unlink()
    assert where(find_checkpoint("best", run_root=root)) == ("version_1", "round=0002.ckpt")


def test_best_needs_a_value(tmp_path: Path) -> None:
    state = {"monitor": "clients/val/loss", "history": [{"round": 0}]}
    save_checkpoint(tmp_path / "version_0" / "checkpoints", state, round=0)
    with pytest.raises(CheckpointError, match=r"no round of .* has a 'clients/val/loss'"):
        find_checkpoint("best", run_root=tmp_path)


def test_best_is_no_round_that_diverged(tmp_path: Path) -> None:
    root = run_root(tmp_path, {0: [math.nan, 2.0, 1.0, math.nan]})
    assert where(find_checkpoint("best", run_root=root)) == ("version_0", "round=0002.ckpt")


def test_best_is_no_round_of_an_older_run(tmp_path: Path) -> None:
    root = run_root(tmp_path, {0: [1.0]})
    begun = save_checkpoint(root / "version_1" / "checkpoints", {}, round=0, complete=False)
    assert find_checkpoint("last", run_root=root) == begun
    with pytest.raises(CheckpointError, match=r"no round of '.*version_1' has ended: give last"):
        find_checkpoint("best", run_root=root)


def test_best_by_another_value_than_the_run_kept_its_rounds_by_is_refused(
    tiny: SimpleNamespace, mlecs_run: SimpleNamespace, tmp_path: Path
) -> None:
    root = run_root(tmp_path, {0: [2.0, 1.0, 3.0]})
    loss, score = Monitor("clients/val/loss"), Monitor("server/val/macro_f1", "max")
    best = find_checkpoint("best", run_root=root, monitor=loss)
    assert where(best) == ("version_0", "round=0001.ckpt")
    said = r"is by trainer\.monitor clients/val/loss \(.* min\), .* and not by server/val/macro_f1"
    with pytest.raises(CheckpointError, match=said):
        find_checkpoint("best", run_root=root, monitor=score)
    last = find_checkpoint("last", run_root=root, monitor=score)
    assert where(last) == ("version_0", "round=0002.ckpt")
    trainer = resumable(tiny, mlecs_run.root, monitor=score.name, monitor_mode=score.mode)
    with pytest.raises(CheckpointError, match=said):
        trainer.test(mlecs_run.algorithm, tiny.data(), tiny.parties(), "best")


def test_without_checkpoints_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "version_0").mkdir()
    for word in ("last", "best"):
        with pytest.raises(CheckpointError, match=f"'{word}', but there is no checkpoint under"):
            find_checkpoint(word, run_root=tmp_path)
    assert find_checkpoint("a/b.ckpt", run_root=tmp_path) == Path("a/b.ckpt")


# Resuming -------------------------------------------------------------------------------------


def alike(one: object, other: object, path: str = "") -> list[str]:
    """Return the paths at which two nested states differ in any bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) and one.dtype == other.dtype else [path]
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{path}: keys"]
        return [p for k in one for p in alike(one[k], other[k], f"{path}/{k}")]
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return [f"{path}: length"]
        return [p for i in range(len(one)) for p in alike(one[i], other[i], f"{path}/{i}")]
    return [] if one == other else [path]


def resumable(tiny: SimpleNamespace, root: Path, **values: Any) -> FederatedTrainer:
    return tiny.trainer(
        root, check_val_every_n_rounds=1, enable_checkpointing=True, logger=True, **values
    )


@pytest.fixture(scope="module")
def stopped(mlecs_run: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed while it wrote its second checkpoint."""
    root = tmp_path_factory.mktemp("stopped")
    shutil.copytree(mlecs_run.root, root, dirs_exist_ok=True)
    folder = root / "tiny" / "version_0" / "checkpoints"
    (folder / "round=0001.ckpt").rename(folder / "round=0001.tmp")
    return root


@pytest.fixture(scope="module")
def resumed(tiny: SimpleNamespace, stopped: Path, mlecs_run: SimpleNamespace) -> SimpleNamespace:
    trainer = resumable(tiny, stopped, max_rounds=2)
    trainer.config = {"seed_everything": 0}
    summary = trainer.fit(mlecs_run.algorithm, tiny.data(), tiny.parties(), ckpt_path="last")
    return SimpleNamespace(summary=summary, folder=stopped / "tiny" / "version_0")


def test_a_resumed_run_ends_in_the_same_bits(
    mlecs_run: SimpleNamespace, resumed: SimpleNamespace
) -> None:
    states = [
        load_checkpoint(run.folder / "checkpoints" / "round=0001.ckpt")
        for run in (mlecs_run, resumed)
    ]
    for state in states:
        assert (state.pop("seconds") > 0).all()
    assert alike(*states) == []
    first = load_checkpoint(mlecs_run.folder / "checkpoints" / "round=0000.ckpt")
    assert len(alike(first["server"], states[0]["server"])) > 50  # the second round did something


def test_a_resumed_run_reports_the_same(
    mlecs_run: SimpleNamespace, resumed: SimpleNamespace
) -> None:
    one, other = ({**run.summary, "seconds": None} for run in (mlecs_run, resumed))
    assert alike(one, other) == []
    assert resumed.summary["seconds"] > 0


def test_a_resumed_run_goes_on_with_the_scale_of_its_gradients(
    tiny: SimpleNamespace, mlecs_run: SimpleNamespace, tmp_path: Path
) -> None:
    """A run in float16, whose scale an overflow has halved; here with the scaler of a CPU."""
    path = mlecs_run.folder / "checkpoints" / "round=0001.ckpt"
    parts = (mlecs_run.algorithm, tiny.data(), tiny.parties(), str(path))
    runs, scalers = [], [torch.amp.GradScaler("cpu", init_scale=s) for s in (1024.0, 65536.0)]
    for scaler in scalers:
        runs.append(resumable(tiny, tmp_path).open(*parts, training=False))
        runs[-1].fabric.strategy.precision = MixedPrecision("16-mixed", "cpu", scaler)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for factor in (math.inf, 1.0):
        optimizer.zero_grad()
        scalers[0].scale(weight.sum() * factor).backward()
        scalers[0].step(optimizer)
        scalers[0].update()
    saved = save_checkpoint(tmp_path, {**load_checkpoint(path), **runs[0].state_dict()}, round=1)
    runs[1].restore(load_checkpoint(saved), path=path)
    state = scalers[1].state_dict()
    assert (state["scale"], state["_growth_tracker"]) == (512.0, 1)


def test_a_resumed_run_goes_on_in_its_folder_with_a_complete_log(
    mlecs_run: SimpleNamespace, resumed: SimpleNamespace
) -> None:
    assert [p.name for p in resumed.folder.parent.iterdir()] == ["version_0"]
    logs = []
    for run in (mlecs_run, resumed):
        with (run.folder / "metrics.csv").open() as file:
            logs.append(list(csv.DictReader(file)))
    seconds = [[float(row.pop("seconds") or 0) for row in log] for log in logs]
    assert logs[0] == logs[1]
    # The first round is that of the process before, which the other goes on from.
    assert all(0 == warm < first < second for warm, first, second in seconds)


@pytest.mark.parametrize(
    ("saved", "clock"),
    [
        (torch.tensor([1.0, 2.5, 4.0]), [1.0, 2.5]),
        (torch.tensor([2.5, 4.0]), [math.nan, 2.5]),
        (4.0, [math.nan, math.nan]),  # as before rounds were timed
    ],
)
def test_seconds_of_rounds_are_restored(saved: torch.Tensor | float, clock: list[float]) -> None:
    found, now = clock_of(saved, 2)
    assert found == pytest.approx(clock, nan_ok=True)
    assert now == 4.0


def test_a_checkpoint_holds_the_documented_things(mlecs_run: SimpleNamespace) -> None:
    state = load_checkpoint(mlecs_run.folder / "checkpoints" / "round=0001.ckpt")
    assert set(state) == {
        *("format_version", "round", "names", "server", "clients", "precision", "ledger"),
        "remote",
        *("faults", "moves", "claims", "history", "warmup", "monitor", "monitor_mode"),
        *("seconds", "config", "about"),
    }
    assert list(state["clients"]) == ["kitchen", "hall", "study"]
    assert [row["round"] for row in state["history"]] == [0, 1]
    assert state["config"] == {"seed_everything": 0}
    for party in (state["server"], *state["clients"].values()):
        assert not any("base_layer" in k or "wte" in k for k in party["model"])
        assert len(party["optimizer"]["state"]) > 10


def test_a_test_of_the_checkpoint_scores_as_the_run_did_and_leaves_its_folder_alone(
    tiny: SimpleNamespace, mlecs_run: SimpleNamespace, tmp_path: Path
) -> None:
    shutil.copytree(mlecs_run.root, tmp_path, dirs_exist_ok=True)
    kept = ("metrics.csv", "config.yaml", "summary.json")
    folder = tmp_path / "tiny" / "version_0"
    before = {name: (folder / name).read_text() for name in kept}
    trainer = resumable(tiny, tmp_path)
    trainer.config = {"ckpt_path": "last"}
    summary = trainer.test(mlecs_run.algorithm, tiny.data(), tiny.parties(), ckpt_path="last")
    differ = alike({**mlecs_run.summary, "seconds": 0}, {**summary, "seconds": 0})
    assert differ == []
    # An earlier round is tested, and the log still tells of the later one.
    trainer.validate(
        mlecs_run.algorithm,
        tiny.data(),
        tiny.parties(),
        ckpt_path=str(folder / "checkpoints" / "round=0000.ckpt"),
    )
    assert {name: (folder / name).read_text() for name in kept} == before


# Checkpoints that do not fit ------------------------------------------------------------------


def test_a_checkpoint_of_other_clients_names_them(tiny: SimpleNamespace, stopped: Path) -> None:
    clients = {k: v for k, v in tiny.clients.items() if k != "hall"} | {
        "attic": ClientSettings(["fourier"])
    }
    with pytest.raises(CheckpointError, match=r"other clients: \['attic', 'hall'\]"):
        resumable(tiny, stopped).test(MLECS(), tiny.data(), tiny.parties(clients), "last")


@pytest.mark.parametrize(
    "values", [{"lora": {"r": 4}}, {"lora": {"r": 1}}, {"connector": {"prompt_length": 5}}]
)
def test_a_checkpoint_of_other_models_is_refused(
    tiny: SimpleNamespace, mlecs_run: SimpleNamespace, values: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny.model(**values)
    settings = tiny.parties(edge=model, server=model)
    path = str(mlecs_run.folder / "checkpoints" / "round=0001.ckpt")
    with pytest.raises(CheckpointError, match="of other models"):
        resumable(tiny, tmp_path).test(MLECS(), tiny.data(), settings, path)


def test_a_checkpoint_of_rank_one_is_not_spread_over_more(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    """(1, in) can be copied into (2, in), and means something else there."""
    narrow = tiny.model(lora={"r": 1})
    settings = tiny.parties({"hall": tiny.clients["hall"]}, edge=narrow, server=narrow)
    resumable(tiny, tmp_path).fit(MLECS(steps=tiny.steps()), tiny.data(), settings)
    wide = tiny.parties({"hall": tiny.clients["hall"]})
    with pytest.raises(
        CheckpointError, match=r"of other models: .*lora_A.*\(2, 96\), got \(1, 96\)"
    ):
        resumable(tiny, tmp_path).test(MLECS(), tiny.data(), wide, "last")


@pytest.mark.parametrize("name", ["round=0000.ckpt", "checkpoints/round=0000.ckpt"])
def test_a_file_may_be_named_from_where_one_stands(
    tiny: SimpleNamespace,
    mlecs_run: SimpleNamespace,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(mlecs_run.root, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tiny" / "version_0" / "checkpoints" / "round=0000.ckpt"
    monkeypatch.chdir(file.parents[len(Path(name).parts) - 1])
    resumable(tiny, tmp_path, max_rounds=2).fit(
        mlecs_run.algorithm, tiny.data(), tiny.parties(), ckpt_path=name
    )
    assert [p.name for p in (tmp_path / "tiny").iterdir()] == ["version_0"]


def test_evaluation_needs_a_checkpoint(tiny: SimpleNamespace, tmp_path: Path) -> None:
    trainer = resumable(tiny, tmp_path)
    for entry in (trainer.test, trainer.validate, trainer.predict):
        with pytest.raises(CheckpointError, match="give last, best or a checkpoint file"):
            entry(MLECS(), tiny.data(), tiny.parties())
