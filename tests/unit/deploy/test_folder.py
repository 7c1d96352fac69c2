import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mlecs_lightning.checkpoints.export import export_run
from mlecs_lightning.errors import ConfigurationError


def test_the_adapter_is_one_that_peft_loads(exported: Path, mlecs_run: SimpleNamespace) -> None:
    base = AutoModelForCausalLM.from_pretrained(exported / "backbone")
    words = torch.tensor([[3, 4, 5, 6]])
    before = base(words).logits
    model = PeftModel.from_pretrained(base, str(exported))
    assert not torch.equal(model(words).logits, before)
    path = mlecs_run.folder / "checkpoints" / "round=0001.ckpt"
    saved = torch.load(path, weights_only=True)["clients"]["hall"]["model"]
    loaded = {k: v for k, v in model.state_dict().items() if ".lora_" in k}
    trained = {k.partition(".lm.")[2]: v for k, v in saved.items() if ".lora_" in k}
    assert loaded.keys() == trained.keys() != set()
    assert all(torch.equal(v, trained[k]) for k, v in loaded.items())


def test_the_rest_of_the_model_is_there_and_nothing_that_is_frozen(
    exported: Path, mlecs_run: SimpleNamespace
) -> None:
    path = mlecs_run.folder / "checkpoints" / "round=0001.ckpt"
    saved = torch.load(path, weights_only=True)["clients"]["hall"]["model"]
    own = load_file(exported / "mlecs_model.safetensors")
    assert {name.split(".")[0] for name in own} == {"extractors", "connector", "readout"}
    for name, tensor in own.items():
        there = name if name.startswith("extractors.") else f"towers.slm.{name}"
        assert torch.equal(tensor, saved[there])
    assert len(own) == sum(".backbone." not in name for name in saved)


def test_the_folder_names_no_place_on_this_machine(exported: Path, repo_root: Path) -> None:
    for file in exported.rglob("*"):
        if file.suffix in (".json", ".md"):
            text = file.read_text()
            assert str(repo_root) not in text
            assert "/tmp" not in text
    config = json.loads((exported / "mlecs_config.json").read_text())
    assert config["backbone"] == {
        **{"model": "backbone", "revision": None, "source": "included", "pocket": "pocket/slm"}
    }
    assert (
        json.loads((exported / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "backbone"
    )


def test_a_backbone_that_is_not_stored_is_named(
    mlecs_run: SimpleNamespace, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    out = export_run(mlecs_run.folder, tmp_path / "o", client="hall", include_backbone=False)
    assert not (out / "backbone").exists()
    config = json.loads((out / "mlecs_config.json").read_text())
    assert config["backbone"] == {"model": tiny.pocket(), "revision": None, "source": "directory"}
    assert "machine that trained the model" in " ".join((out / "README.md").read_text().split())


def test_nothing_is_written_over(mlecs_run: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for taken in (tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigurationError, match="exists; name a new folder"):
            export_run(mlecs_run.folder, taken, client="hall")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
