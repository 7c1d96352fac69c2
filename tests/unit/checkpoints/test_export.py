import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlecs_lightning.checkpoints import CheckpointError
from mlecs_lightning.checkpoints.export import export_run
from mlecs_lightning.checkpoints.models import CheckpointModels
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.modules.pocket import pocket_of


@pytest.fixture
def run(mlecs_run: SimpleNamespace, tmp_path: Path) -> Path:
    """A copy of the run folder, to be changed."""
    return Path(shutil.copytree(mlecs_run.folder, tmp_path / "run"))


def training(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "mlecs_config.json").read_text())["training"]
    return values


def rewrite(path: Path, **changes: Any) -> None:
    state = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in {**state, **changes}.items() if v is not None}, path)


def test_scores_are_told_of_the_round_that_they_are_of(run: Path, tmp_path: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    last = training(export_run(run, tmp_path / "last", client="hall"))
    assert last["rounds"] == 2
    assert last["scores"] == {t: summary["clients"]["hall"][t] for t in ("own", "all")}
    first = run / "checkpoints" / "round=0000.ckpt"
    earlier = training(export_run(first, tmp_path / "first", client="hall"))
    assert (earlier["rounds"], earlier["scores"]) == (1, {})
    server = training(export_run(run, tmp_path / "server", client="server"))
    assert server["scores"] == {"all": summary["server"]}
    assert server["constant"] == {"all": summary["constant"]["server"]}


def test_a_run_from_python_tells_the_options_of_its_method(
    run: Path, mlecs_run: SimpleNamespace, tmp_path: Path
) -> None:
    last = run / "checkpoints" / "round=0001.ckpt"
    assert "algorithm" not in torch.load(last, weights_only=True)["config"]
    options = training(export_run(run, tmp_path / "out", client="hall"))["options"]
    assert options["temperature"] == mlecs_run.algorithm.temperature
    given = {"algorithm": {"class_path": "MLECS", "init_args": {"temperature": 0.3}}}
    rewrite(last, config=given)
    options = training(export_run(run, tmp_path / "configured", client="hall"))["options"]
    assert options == {"temperature": 0.3}


def test_a_checkpoint_is_exported_by_its_bare_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run / "checkpoints")
    told = training(export_run("round=0001.ckpt", tmp_path / "out", client="hall"))
    assert set(told["scores"]) == {"own", "all"}, "those of the summary above the folder"


def test_what_is_not_there_is_named(run: Path, tmp_path: Path) -> None:
    out, last = tmp_path / "out", run / "checkpoints" / "round=0001.ckpt"
    with pytest.raises(ConfigurationError, match=r"'attic' is none of \['kitchen', 'hall', 'stu"):
        export_run(run, out, client="attic")
    with pytest.raises(CheckpointError, match="no checkpoint of a whole round in it"):
        export_run(tmp_path, out, client="hall")
    states = torch.load(last, weights_only=True)["clients"]
    rewrite(last, clients={k: v for k, v in states.items() if k != "hall"})
    with pytest.raises(CheckpointError, match="client 'hall' has not trained yet"):
        export_run(run, out, client="hall")
    rewrite(last, clients={"hall": states["kitchen"]})
    with pytest.raises(CheckpointError, match=r"client 'hall' of .*missing"):
        export_run(run, out, client="hall")
    rewrite(last, about=None)
    with pytest.raises(CheckpointError, match="is of an earlier version"):
        export_run(run, out, client="hall")
    assert not out.exists()


def test_clients_of_one_architecture_come_one_after_another(mlecs_run: SimpleNamespace) -> None:
    saved = CheckpointModels(mlecs_run.folder / "checkpoints" / "round=0001.ckpt")
    kitchen = saved.edge("kitchen")
    state = kitchen.trainable_state()
    study = saved.edge("study")
    assert study is kitchen
    moved = [k for k, v in study.trainable_state().items() if not torch.equal(v, state[k])]
    assert len(moved) > 10
    again = saved.edge("kitchen").trainable_state()
    assert all(torch.equal(v, state[k]) for k, v in again.items())


def test_a_pocket_model_is_found_where_this_machine_keeps_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = run / "checkpoints" / "round=0001.ckpt"
    about = torch.load(last, weights_only=True)["about"]
    for built in (about["models"]["architectures"][0], about["models"]["architectures"][1]):
        name = Path(built["settings"]["backbone"]["model"]).name
        built["settings"]["backbone"]["model"] = f"/somewhere/else/pocket/{name}"
    rewrite(last, about=about)
    assert CheckpointModels(last).edge("hall").settings.backbone.model.endswith(f"pocket/{name}")
    monkeypatch.setenv("MLECS_CACHE", str(tmp_path / "empty"))
    with pytest.raises(CheckpointError, match=r"pocket/slm: there is no .*`test` with the conf"):
        CheckpointModels(last).edge("hall")


def test_only_what_was_made_here_is_a_pocket_model(tiny: SimpleNamespace) -> None:
    assert pocket_of(tiny.pocket()) == "pocket/slm"
    for other in (
        "gpt2",
        "pocket/slm",
        "/a/pocket/xl-0123456789abcdef",
        "/a/b/slm-0123456789abcdef",
    ):
        assert pocket_of(other) is None
