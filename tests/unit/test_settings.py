from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch

from mlecs_lightning.class_paths import build_class, check_class_path
from mlecs_lightning.errors import ConfigurationError
from mlecs_lightning.settings import (
    BackboneSettings,
    ConnectorSettings,
    LoraSettings,
    ModelSettings,
    cache_dir,
    override,
)
from mlecs_lightning.types import Batch, ModalityKind, ModalitySpec


class Needy:
    """A class that a YAML file may name."""

    def __init__(self, first: int, *, size: int = 1) -> None:
        if size < 0:
            raise ValueError("size is negative")
        self.first, self.size = first, size


def needy(**init_args: Any) -> dict[str, Any]:
    return {"class_path": f"{__name__}.Needy", "init_args": init_args}


# Class paths --------------------------------------------------------------------------------------


def test_class_is_built_from_its_import_path_and_arguments() -> None:
    built = build_class(needy(size=7), 3, home="torch.optim", key="k")
    assert (type(built), built.first, built.size) == (Needy, 3, 7)


def test_bare_name_is_looked_up_at_home() -> None:
    setting = {"class_path": "SGD", "init_args": {"lr": 0.5}}
    optimizer = build_class(setting, [torch.zeros(1)], home="torch.optim", key="k")
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["lr"] == 0.5


@pytest.mark.parametrize("init_args", [{}, {"init_args": None}, {"init_args": {}}])
def test_arguments_of_a_class_may_be_left_out(init_args: dict[str, Any]) -> None:
    setting = {"class_path": f"{__name__}.Needy", **init_args}
    assert build_class(setting, 3, home="", key="k").size == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"class_path": "AdamX"}, r"edge\.optimizer\.class_path: cannot import 'AdamX'"),
        ({"class_path": "no.such.Thing"}, r"edge\.optimizer\.class_path: cannot import"),
        (needy(colour=1), r"edge\.optimizer\.init_args: .*Needy: .*'colour'"),
        (needy(size=-1), r"edge\.optimizer\.init_args: .*Needy: size is negative"),
        ({"class_path": 3}, r"edge\.optimizer: expected class_path and init_args, got"),
    ],
)
def test_class_that_cannot_be_built_is_named_with_its_key(
    setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build_class(setting, 3, home="torch.optim", key="edge.optimizer")


@pytest.mark.parametrize(
    "setting",
    [
        "AdamW",
        None,
        {},
        {"init_args": {}},
        {"class_path": "A", "lr": 1},
        needy() | {"init_args": 3},
    ],
)
def test_malformed_class_path_is_refused(setting: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^extractors\.rgb: expected class_path"):
        check_class_path(setting, key="extractors.rgb")


# The dataclasses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "values", "key"),
    [
        (LoraSettings, {"r": 0}, "lora"),
        (LoraSettings, {"alpha": 0}, "lora"),
        (LoraSettings, {"dropout": 1.0}, "lora"),
        (LoraSettings, {"dropout": -0.1}, "lora"),
        (ConnectorSettings, {"width": 0}, "connector"),
        (ConnectorSettings, {"prompt_length": 0}, "connector"),
        (ConnectorSettings, {"dropout": 1.0}, "connector"),
    ],
)
def test_value_out_of_range_is_refused(cls: type, values: dict[str, Any], key: str) -> None:
    name, value = next(iter(values.items()))
    with pytest.raises(ConfigurationError, match=rf"^{key}: .*{name}.*got .*{name}={value}"):
        cls(**values)


def test_defaults_are_those_of_the_reference_configuration() -> None:
    settings = ModelSettings()
    assert (settings.lora.r, settings.lora.alpha, settings.lora.dropout) == (8, 16, 0.05)
    assert (settings.connector.width, settings.connector.prompt_length) == (256, 16)
    assert settings.optimizer == {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-4}}


def test_model_settings_check_their_class_paths_and_cannot_change() -> None:
    with pytest.raises(ConfigurationError, match=r"^optimizer: "):
        ModelSettings(optimizer={"name": "AdamW"})
    with pytest.raises(ConfigurationError, match=r"^extractors\.rgb: "):
        ModelSettings(extractors={"rgb": {"cls": "A"}})
    with pytest.raises(FrozenInstanceError):
        ModelSettings().max_new_tokens = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "optimizer",
    [
        {"class_path": "SGD", "init_args": {"lr": 0.1, "momentum": 0.9}},
        {"class_path": "torch.optim.AdamW", "init_args": {"weight_decay": 0.0}},
        {"class_path": "torch.optim.AdamW", "init_args": {}},
    ],
)
def test_settings_survive_a_checkpoint(optimizer: dict[str, Any], tmp_path: Path) -> None:
    settings = ModelSettings(
        BackboneSettings("gpt2", dtype="bfloat16"),
        LoraSettings(r=4, target_modules=["c_attn"]),
        ConnectorSettings(width=8),
        extractors={"rgb": needy(size=2)},
        optimizer=optimizer,
        max_new_tokens=5,
    )
    torch.save(settings.to_dict(), tmp_path / "settings.ckpt")
    plain = torch.load(tmp_path / "settings.ckpt", weights_only=True)
    assert ModelSettings.from_dict(plain) == settings


# Overrides ----------------------------------------------------------------------------------------


def test_override_keeps_what_is_not_named() -> None:
    edge = ModelSettings(lora=LoraSettings(r=8, alpha=5, dropout=0.2), max_new_tokens=9)
    client = override(edge, {"lora": {"r": 4}}, key="clients.hall")
    assert client.lora == LoraSettings(r=4, alpha=5, dropout=0.2)
    assert client.max_new_tokens == 9
    assert edge.lora.r == 8


@pytest.mark.parametrize("key", ["optimizer", "lr_scheduler"])
def test_override_of_an_argument_keeps_the_others(key: str) -> None:
    edge = ModelSettings(**{key: {"class_path": "Old", "init_args": {"one": 1.0, "other": 2.0}}})
    client = override(edge, {key: {"init_args": {"one": 3.0}}}, key="k")
    assert getattr(client, key) == {"class_path": "Old", "init_args": {"one": 3.0, "other": 2.0}}


@pytest.mark.parametrize("key", ["optimizer", "lr_scheduler"])
def test_override_of_a_class_drops_the_arguments_of_the_old_one(key: str) -> None:
    edge = ModelSettings(**{key: {"class_path": "Old", "init_args": {"one": 1.0}}})
    client = override(edge, {key: {"class_path": "New"}}, key="k")
    assert getattr(client, key) == {"class_path": "New", "init_args": {}}


def test_override_of_one_extractor_keeps_the_others() -> None:
    edge = ModelSettings(extractors={"rgb": needy(), "acc": needy()})
    client = override(edge, {"extractors": {"acc": needy(size=2)}}, key="k")
    assert client.extractors == {"rgb": needy(), "acc": needy(size=2)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"lore": {"r": 4}},
            r"^clients\.hall: unknown keys \['lore'\], known: \['backbone', 'lora'",
        ),
        ({"lora": {"rank": 4}}, r"^clients\.hall\.lora: unknown keys \['rank'\], known: \['r', "),
        ({"lora": {"r": 0}}, r"^clients\.hall\.lora: .*r must be at least 1"),
        ({"lora": 4}, r"^clients\.hall\.lora: expected keys and their values, got 4"),
        ({"optimizer": "SGD"}, r"^clients\.hall\.optimizer: expected .* got 'SGD'"),
        (
            {"optimizer": {"lr": 1}},
            r"^clients\.hall\.optimizer: expected class_path .* got \{.*'lr': 1\}",
        ),
        ({"extractors": "CNN"}, r"^clients\.hall\.extractors: expected .* got 'CNN'"),
        ({"extractors": {"rgb": "CNN"}}, r"^clients\.hall: extractors\.rgb: expected .* 'CNN'"),
    ],
)
def test_fault_of_an_override_is_named_with_its_key(
    values: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        override(ModelSettings(), values, key="clients.hall")


# Places and nouns ---------------------------------------------------------------------------------


def test_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLECS_CACHE", "~/somewhere")
    assert cache_dir() == Path.home() / "somewhere"
    monkeypatch.delenv("MLECS_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "mlecs_lightning"


@pytest.mark.parametrize(
    ("kind", "shape", "rank"),
    [("vector", (3, 4), 1), ("image", (8, 8), 3), ("series", (3,), 2)],
)
def test_modality_whose_shape_is_not_of_its_kind_is_refused(
    kind: ModalityKind, shape: tuple[int, ...], rank: int
) -> None:
    with pytest.raises(ValueError, match=f"'{kind}' has {rank} dimensions, got shape"):
        ModalitySpec(kind, shape)


def test_lightning_moves_the_tensors_of_a_batch() -> None:
    from lightning.fabric.utilities.apply_func import move_data_to_device

    batch = Batch(("i",), ("a",), {"a": torch.ones(1, 2)}, torch.ones(1, 1).bool(), ("q",), ("t",))
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, Batch)
    assert (moved.inputs["a"].device.type, moved.present.device.type) == ("meta", "meta")
    assert moved._replace(inputs=batch.inputs, present=batch.present) == batch
