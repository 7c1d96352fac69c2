"""Keys of earlier versions: how they are refused, and how old configurations are read."""

import inspect

from mlecs_lightning import FederatedTrainer
from mlecs_lightning.class_paths import import_class
from mlecs_lightning.renamed_keys import (
    MOVED_CLASSES,
    RENAMED_KEYS,
    renamed_key_faults,
    with_present_classes,
    with_present_keys,
)

OLD = {
    "seed_everything": 3,
    "trainer": {
        "client_fraction": 0.5,
        "large_update": "clip",
        "max_update_norm": 2.0,
        "devices": 1,
    },
}


def test_an_old_configuration_is_read_under_the_present_keys() -> None:
    assert with_present_keys(OLD) == {
        "seed_everything": 3,
        "trainer": {
            "devices": 1,
            "participation": {"fraction": 0.5},
            "update_limits": {"max_norm": 2.0, "on_excess": "clip"},
        },
    }
    assert "client_fraction" in OLD["trainer"]  # type: ignore[operator]


def test_a_present_configuration_stays_as_it_is() -> None:
    present = with_present_keys(OLD)
    assert with_present_keys(present) == present
    assert with_present_keys({"trainer": None}) == {"trainer": None}


def test_moved_classes_are_named_by_their_present_path() -> None:
    codec = {"class_path": "mlecs_lightning.federated.DWC", "init_args": {"bits": 4}}
    old = {"trainer": {"codec": codec, "name": "mlecs_lightning.federated.DWC"}}
    present = with_present_classes(old)
    assert present["trainer"]["codec"] == {**codec, "class_path": "mlecs_lightning.wire.DWC"}
    assert present["trainer"]["name"] == old["trainer"]["name"], "a text that is no class path"
    assert with_present_keys(old) == present
    for path in MOVED_CLASSES.values():
        assert import_class({"class_path": path}, home="builtins", key="codec").__name__ == "DWC"


def test_only_old_keys_are_faults_and_each_names_its_successor() -> None:
    assert renamed_key_faults(["trainer.devices", "trainer.min_clients", "min_clients"]) == [
        "trainer.min_clients is now trainer.participation.min_clients"
    ]


def test_every_new_key_is_an_argument_of_the_trainer_and_no_old_one_is() -> None:
    trainer = inspect.signature(FederatedTrainer).parameters
    for old, new in RENAMED_KEYS.items():
        _, group, name = new.split(".")
        assert name in inspect.signature(type(trainer[group].default)).parameters
        assert old.removeprefix("trainer.") not in trainer
