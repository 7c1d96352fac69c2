"""One name, one content: between ranks with caches of their own, and between two processes."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from mlecs_lightning.storage.files import sha256_of
from tests.integration.processes import launch
from tests.integration.processes.launch import ended


@pytest.fixture
def model(tiny: SimpleNamespace, tmp_path: Path) -> Path:
    """A copy of the pocket model in a cache of its own."""
    made = Path(tiny.pocket())
    return Path(shutil.copytree(made, tmp_path / "one" / "pocket" / made.name))


def change(folder: Path) -> None:
    """Write other weights, as another kind of CPU would have made them: the record is theirs."""
    path = folder / "model.safetensors"
    state = load_file(path)
    state["transformer.ln_f.bias"][0] += 1e-6
    save_file(state, path, metadata={"format": "pt"})
    record = json.loads((folder / "pocket.json").read_text())
    (folder / "pocket.json").write_text(json.dumps(record | {path.name: sha256_of(path)}))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fit", "warmup"])
def test_two_ranks_with_other_weights_in_their_caches_are_refused(
    command: str, model: Path, tiny_yaml: Path, tmp_path: Path
) -> None:
    change(Path(shutil.copytree(model, tmp_path / "two" / "pocket" / model.name)))
    caches = [{"MLECS_CACHE": str(tmp_path / name)} for name in ("one", "two")]
    args = [command, "--config", tiny_yaml, "--trainer.default_root_dir", tmp_path / "runs"]
    args += ["--trainer.devices", 2, "--trainer.strategy", "ddp"]
    output = tmp_path / "output.txt"
    started = launch.start_ranks(2, *args, output=str(output), environments=caches)
    assert [ended(process) for process in started] == [1, 1], output.read_text()
    said = output.read_text()
    found = re.search(
        r"towers\.llm\.backbone: backbone or encoder 'pocket/slm': "
        r"its weights has sha256 (\w{16}) on rank 0 and (\w{16}) on rank 1",
        said,
    )
    assert found, said
    assert "folder pocket of MLECS_CACHE" in said
    left = [path for path in (tmp_path / "runs").rglob("*") if path.suffix in (".ckpt", ".yaml")]
    assert left == [], "Lightning's warm-up opens its log before it lets us compare"


@pytest.mark.slow
def test_a_model_that_changed_between_fit_and_the_next_process_is_refused(
    mlecs: Callable[..., SimpleNamespace], model: Path, tiny_yaml: Path, tmp_path: Path
) -> None:
    root, output = tmp_path / "runs", tmp_path / "output.txt"
    args = ["--config", tiny_yaml, "--trainer.default_root_dir", root]
    for party in ("server", "edge"):
        args += [f"--{party}.backbone.model", model]
    assert ended(launch.start("fit", *args, "--trainer.max_rounds", 1)) == 0
    change(model)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    for command in ("fit", "predict"):
        more = [command, *args, "--ckpt_path", "last"]
        assert ended(launch.start(*more, output=str(output))) == 1, output.read_text()
    assert output.read_text().count("was trained with other frozen models:") == 2
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
