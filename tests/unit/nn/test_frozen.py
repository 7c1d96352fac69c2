"""Digests of frozen models: what changes an answer changes one, and nothing else does."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mlecs_lightning.nn.backbone import Backbone
from mlecs_lightning.nn.frozen import digests
from mlecs_lightning.nn.loading import load_frozen
from mlecs_lightning.settings import BackboneSettings, LoraSettings
from tests.unit.nn.test_families import FAMILIES, save

KINDS = {"weights", "config", "tokenizer"}


def of(path: Path, **values: object) -> dict[str, str]:
    return digests(*load_frozen(BackboneSettings(str(path), **values)))  # type: ignore[arg-type]


def one_bit(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    state["transformer.ln_f.weight"][3] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


def two_layers_swapped(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    names = [f"transformer.h.{n}.mlp.c_fc.weight" for n in (0, 1)]
    state[names[0]], state[names[1]] = state[names[1]], state[names[0]]
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


def edit(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        text = (path / file).read_text()
        assert old in text
        (path / file).write_text(text.replace(old, new))

    return change


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "one bit of one weight": (one_bit, "weights"),
    "two layers swapped": (two_layers_swapped, "weights"),
    "another activation": (edit("config.json", '"gelu_new"', '"relu"'), "config"),
    "another epsilon": (edit("config.json", "1e-05", "1e-03"), "config"),
    "two words swapped": (edit("tokenizer.json", '"falling"', '"fallen"'), "tokenizer"),
    "words cut elsewhere": (edit("tokenizer.json", "WhitespaceSplit", "Whitespace"), "tokenizer"),
    "another end of sequence": (
        edit("tokenizer_config.json", '"eos_token": "<eos>"', '"eos_token": "."'),
        "tokenizer",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_an_answer_changes_one_digest(tmp_path: Path, change: str) -> None:
    for name in ("before", "after"):
        save(tmp_path / name, "gpt2")
    make, kind = CHANGES[change]
    make(tmp_path / "after")
    before, after = of(tmp_path / "before"), of(tmp_path / "after")
    assert {k for k in KINDS if before[k] != after[k]} == {kind}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_model_saved_again_in_shards_is_the_same(tmp_path: Path, family: str) -> None:
    save(tmp_path / "first", family)
    model, tokenizer = load_frozen(BackboneSettings(str(tmp_path / "first")))
    tokenizer(["upright", "falling down"], padding=False, truncation=True, max_length=1)
    model.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "again")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    assert of(tmp_path / "again") == of(tmp_path / "first")
    assert of(tmp_path / "first").keys() == KINDS


def test_neither_threads_nor_an_adapter_change_a_digest_but_another_type_does(
    tmp_path: Path,
) -> None:
    path, threads = save(tmp_path, "gpt2"), torch.get_num_threads()
    backbone = Backbone(BackboneSettings(path, gradient_checkpointing=True), LoraSettings())
    digests.cache_clear()
    try:
        torch.set_num_threads(3)
        assert backbone.frozen_contents() == {"model": path, **of(tmp_path)}
        known = of(tmp_path)
        digests.cache_clear()
        torch.set_num_threads(1)
        assert of(tmp_path) == known
    finally:
        torch.set_num_threads(threads)
    stored = of(tmp_path, dtype="bfloat16")
    assert {k for k in KINDS if stored[k] != known[k]} == {"weights"}
