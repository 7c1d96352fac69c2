"""Settings as plain data, for a checkpoint that says how a run was set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlecs_lightning.algorithms import CDCCA, MLECS, CoPLMs, Steps
from mlecs_lightning.differences import alike, arguments_of, as_data, untold_arguments


@dataclass
class Rate:
    value: float = 0.1


class Base:
    def __init__(self, *, rate: Rate | None = None, seed: int = 0) -> None:
        self.rate, self.seed = rate or Rate(), seed


class Part(Base):
    def __init__(self, places: list[str], *, hidden: int = 1, **rest: Any) -> None:
        super().__init__(**rest)
        self.places, self._hidden = places, hidden
        self.rounds = 7  # no argument


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (None, None),
        (True, True),
        ((1, "a"), [1, "a"]),
        (frozenset({"b", "a"}), ["a", "b"]),
        (Path("x"), "x"),
        ({1: Rate(0.5)}, {"1": {"value": 0.5}}),
        (Base(seed=2), {"class_path": "Base", "init_args": {"rate": {"value": 0.1}, "seed": 2}}),
    ],
)
def test_settings_become_plain_data(value: object, data: object) -> None:
    assert as_data(value) == data
    assert type(as_data(value)) is type(data)


def test_a_number_of_numpy_becomes_one_that_a_weights_only_load_reads(tmp_path: Path) -> None:
    torch.save(as_data({"rate": np.float64(0.5), "name": np.str_("x")}), tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True) == {"rate": 0.5, "name": "x"}


def test_arguments_are_those_of_all_classes_that_are_kept_under_their_names() -> None:
    part = Part(["hall"], seed=3)
    assert arguments_of(part) == {"places": ["hall"], "rate": {"value": 0.1}, "seed": 3}
    assert untold_arguments(part) == ["hidden"]


def test_every_argument_of_the_main_method_is_told() -> None:
    told = arguments_of(MLECS(steps=Steps(1, 2, 3, 4), temperature=0.2))
    assert told["steps"] == {"warmup": 1, "public": 2, "private": 3, "server": 4}
    assert (told["temperature"], told["components"]) == (0.2, ["amt", "ccl", "mma", "se_ccl"])
    assert untold_arguments(MLECS()) == []
    assert untold_arguments(CoPLMs()) == ["weight"]  # which is a method of it
    assert untold_arguments(CDCCA()) == []


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("/a/x", "/b/x", True), ("/a/x", "/a/y", False), ("a/x", "b/x", False), (1, 1.0, True)],
)
def test_a_file_may_lie_in_another_folder(one: object, other: object, same: bool) -> None:
    assert alike(one, other) is same
