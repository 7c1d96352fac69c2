"""A language model whose files are damaged: the folder is named, and what helps."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.nn.loading import load_frozen
from mlecs_lightning.settings import BackboneSettings


def cut(name: str, part: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])

    return damage


def replaced(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        whole = path.read_bytes()
        assert old in whole
        path.write_bytes(whole.replace(old, new, 1))

    return damage


DAMAGES = {
    "empty weights": cut("model.safetensors", 0),
    "half of the weights": cut("model.safetensors", 0.5),
    "a byte is missing": cut("model.safetensors", 0.999999),
    "a weight of another name": replaced("model.safetensors", b".wte.", b".wtf."),
    "half a configuration": cut("config.json", 0.5),
    "half a tokenizer": cut("tokenizer.json", 0.5),
    "a tokenizer of no kind": replaced("tokenizer.json", b'"special"', b'"speciel"'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_directory_is_named(
    tiny: SimpleNamespace, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(tiny.pocket(), tmp_path / "model"))
    damage(folder)
    with pytest.raises(ConfigurationError) as caught:
        load_frozen(BackboneSettings(model=str(folder)))
    first, second = str(caught.value).splitlines()[0], str(caught.value).splitlines()[-1]
    assert first.startswith(f"backbone.model {str(folder)!r}: ")
    assert len(first) > len(f"backbone.model {str(folder)!r}: ") + 5
    assert f"the files in {str(folder)!r} are damaged" in second
    assert second.endswith("copy its files there again")


def test_a_pocket_model_is_made_again(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny.pocket(), tmp_path / "pocket" / "slm-0"))
    monkeypatch.setenv("MLECS_CACHE", str(tmp_path))
    cut("model.safetensors", 0.5)(folder)
    with pytest.raises(ConfigurationError, match=r"slm-0' are damaged.*to train the model again"):
        load_frozen(BackboneSettings(model=str(folder)))


def test_a_model_of_the_hub_is_fetched_again(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    place = tmp_path / "models--someone--small"
    folder = Path(shutil.copytree(tiny.pocket(), place / "snapshots" / commit))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    cut("model.safetensors", 0.5)(folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigurationError) as caught:
        load_frozen(BackboneSettings(model="someone/small", local_files_only=True))
    assert f"the files in {str(folder)!r} are damaged" in str(caught.value)
    assert str(caught.value).endswith("delete the folder to download them again")
