"""What a second file and options on the command line change, and what they leave alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Merged = Callable[..., dict[str, Any]]
KITCHEN = {"modalities": ["pixels", "profile"]}
HALL = {"modalities": ["fourier"]}
IMAGE = {"class_path": "ImageCNN", "init_args": {"channels": 8, "width": 16}}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a configuration file that holds the given sections."""

    def call(**sections: object) -> Path:
        path = tmp_path / f"file_{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(yaml.safe_dump(sections, sort_keys=False))
        return path

    return call


# Clients ------------------------------------------------------------------------------------------


def test_a_second_file_adds_a_client_and_changes_a_part_of_another(
    merged: Merged, tiny_yaml: Path, write: Callable[..., Path]
) -> None:
    second = write(clients={"attic": {"modalities": ["pixels"]}, "hall": {"lora": {"r": 3}}})
    third = write(clients={"hall": {"lora": {"alpha": 6}, "modalities": ["profile"]}})
    config = merged("--config", tiny_yaml, "--config", second, "-c", third)
    assert list(config["clients"].items()) == [
        ("kitchen", KITCHEN),
        ("hall", {"modalities": ["profile"], "lora": {"r": 3, "alpha": 6}}),
        ("attic", {"modalities": ["pixels"]}),
    ]


def test_a_file_without_clients_leaves_them_as_they_are(
    merged: Merged, tiny_yaml: Path, write: Callable[..., Path]
) -> None:
    config = merged("--config", tiny_yaml, f"--config={write(trainer={'max_rounds': 9})}")
    assert config["clients"] == {"kitchen": KITCHEN, "hall": HALL}
    assert config["trainer"]["max_rounds"] == 9
    assert config["trainer"]["name"] == "tiny"


def test_options_and_files_count_in_their_order(
    merged: Merged, tiny_yaml: Path, write: Callable[..., Path]
) -> None:
    option = ("--clients.hall.modalities", "[pixels]")
    second = ("--config", write(clients={"hall": {"modalities": ["profile"]}}))
    first = ("--config", tiny_yaml)
    assert merged(*first, *option, *second)["clients"]["hall"]["modalities"] == ["profile"]
    assert merged(*first, *second, *option)["clients"]["hall"]["modalities"] == ["pixels"]


@pytest.mark.parametrize("equals", [True, False])
def test_options_reach_any_depth_and_keep_what_is_beside(
    merged: Merged, tiny_yaml: Path, equals: bool
) -> None:
    options = {
        "--clients.hall.lora.r": 3,
        "--clients.hall.lora.alpha": 6,
        "--clients.hall.optimizer.init_args.lr": "1e-3",
        "--clients.attic": "{modalities: [pixels], lora: {r: 5}}",
        "--clients.attic.lora.dropout": 0.0,
    }
    args = [f"{k}={v}" for k, v in options.items()] if equals else sum(options.items(), ())
    assert merged("--config", tiny_yaml, *args)["clients"] == {
        "kitchen": KITCHEN,
        "hall": HALL | {"lora": {"r": 3, "alpha": 6}, "optimizer": {"init_args": {"lr": 0.001}}},
        "attic": {"modalities": ["pixels"], "lora": {"r": 5, "dropout": 0.0}},
    }


def test_another_class_comes_without_the_arguments_of_the_old_one(
    merged: Merged, tiny_yaml: Path, write: Callable[..., Path]
) -> None:
    given = ("--config", write(clients={"kitchen": {"extractors": {"pixels": IMAGE}}}))
    at = "--clients.kitchen.extractors.pixels"

    def pixels(*args: object) -> object:
        config = merged("--config", tiny_yaml, *given, *args)
        return config["clients"]["kitchen"]["extractors"]["pixels"]

    assert pixels() == IMAGE
    assert pixels(f"{at}.init_args.width", 32)["init_args"] == {"channels": 8, "width": 32}
    assert pixels(at, "{class_path: own.Encoder}") == {"class_path": "own.Encoder"}


def test_clients_as_a_whole_replace_all(merged: Merged, tiny_yaml: Path) -> None:
    config = merged(
        *("--config", tiny_yaml, "--clients.hall.lora.r", 3),
        *("--clients", "{attic: {modalities: [pixels]}}", "--clients.attic.lora.r", 5),
    )
    assert config["clients"] == {"attic": {"modalities": ["pixels"], "lora": {"r": 5}}}


def test_named_and_drawn_clients_replace_each_other(
    merged: Merged, tiny_yaml: Path, write: Callable[..., Path]
) -> None:
    drawn = ("--config", write(clients={"count": 3, "seed": 5}))
    first = ("--config", tiny_yaml)
    assert merged(*first, *drawn)["clients"] == {"count": 3, "seed": 5}
    assert merged(*drawn, *first)["clients"] == {"kitchen": KITCHEN, "hall": HALL}
    assert merged(*first, *drawn, "--clients.count", 4)["clients"] == {"count": 4, "seed": 5}
    assert merged(*first, *drawn, "--clients.modality_rate=1")["clients"] == {
        "count": 3,
        "seed": 5,
        "modality_rate": 1,
    }


# Everything else ----------------------------------------------------------------------------------


def test_another_algorithm_keeps_the_arguments_that_it_has(merged: Merged, tiny_yaml: Path) -> None:
    steps = {"warmup": 1, "public": 1, "private": 1, "server": 1}
    mlecs = merged("--config", tiny_yaml, "--algorithm.components", "[ccl]")["algorithm"]
    assert mlecs["class_path"] == "mlecs_lightning.MLECS"
    assert (mlecs["init_args"]["components"], mlecs["init_args"]["steps"]) == (["ccl"], steps)
    fedavg = merged("--config", tiny_yaml, "--algorithm.components", "[ccl]", "--algorithm=FedAvg")
    assert fedavg["algorithm"]["class_path"] == "mlecs_lightning.FedAvg"
    assert fedavg["algorithm"]["init_args"]["steps"] == steps
    assert "components" not in fedavg["algorithm"]["init_args"]


def test_a_step_count_keeps_the_others(merged: Merged, tiny_yaml: Path) -> None:
    config = merged("--config", tiny_yaml, "--algorithm.init_args.steps.public", 5)
    steps = {"warmup": 1, "public": 5, "private": 1, "server": 1}
    assert config["algorithm"]["init_args"]["steps"] == steps


def test_data_keep_what_is_not_named(
    merged: Merged, tiny_yaml: Path, write: Callable[..., Path]
) -> None:
    second = write(data={"init_args": {"alpha": 2.0}})
    config = merged("--config", tiny_yaml, "--config", second, "--data.batch_size", 4)
    data = config["data"]
    assert data["class_path"] == "mlecs_lightning.Digits"
    given = {key: data["init_args"][key] for key in ("alpha", "batch_size", "eval_batch_size")}
    assert given == {"alpha": 2.0, "batch_size": 4, "eval_batch_size": 8}


@pytest.mark.parametrize("name", ["SGD", "torch.optim.SGD"])
def test_another_optimizer_drops_arguments_that_are_not_its_own(
    merged: Merged, tiny_yaml: Path, name: str
) -> None:
    beta = ("--edge.optimizer.init_args.betas", "[0.5,0.5]")
    config = merged("--config", tiny_yaml, *beta, "--edge.optimizer", name)
    assert config["edge"]["optimizer"]["class_path"] == "torch.optim.SGD"
    arguments = config["edge"]["optimizer"]["init_args"]
    assert arguments["lr"] == 0.01
    assert "betas" not in arguments
    server = config["server"]["optimizer"]
    assert (server["class_path"], server["init_args"]["lr"]) == ("torch.optim.AdamW", 0.01)


def test_an_argument_of_a_scheduler_is_changed_and_the_scheduler_taken_away(
    merged: Merged, tiny_yaml: Path
) -> None:
    chosen = "{class_path: CosineAnnealingLR, init_args: {T_max: 6, eta_min: 0.1}}"
    given = ["--config", str(tiny_yaml), "--edge.lr_scheduler", chosen]
    arguments = merged(*given, "--edge.lr_scheduler.init_args.T_max", "2")["edge"]["lr_scheduler"]
    assert arguments["class_path"] == "torch.optim.lr_scheduler.CosineAnnealingLR"
    assert (arguments["init_args"]["T_max"], arguments["init_args"]["eta_min"]) == (2, 0.1)
    assert merged(*given, "--edge.lr_scheduler", "null")["edge"]["lr_scheduler"] is None


def test_a_second_file_changes_one_value_of_a_party(
    merged: Merged, tiny_yaml: Path, write: Callable[..., Path]
) -> None:
    before = merged("--config", tiny_yaml)
    after = merged("--config", tiny_yaml, "--config", write(edge={"lora": {"r": 7}}))
    assert after["edge"]["lora"].pop("r") == 7
    assert before["edge"]["lora"].pop("r") == 2
    assert after == before


def test_callbacks_are_named_by_their_class(merged: Merged, tiny_yaml: Path) -> None:
    config = merged("--config", tiny_yaml, "--trainer.callbacks", "[RichProgress]")
    (callback,) = config["trainer"]["callbacks"]
    assert callback["class_path"].endswith(".RichProgress")
